"""The same work against Waybill and its peers, interleaved, as ratios; one table out. Start with __main__.py."""
