"""The client: the commands that send files to a service and fetch them again. The service never imports it."""
