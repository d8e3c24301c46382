"""Leases: exclusive or shared for a time, with fencing tokens that the store itself checks."""
