"""Waybill: uploads that land whole or not at all, and a history of them."""
