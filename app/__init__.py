"""Waybill: uploads that are kept complete or not at all, and a history of them."""
