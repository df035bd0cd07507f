"""The database: named queries, transactions, and nothing that can hang or leak."""
