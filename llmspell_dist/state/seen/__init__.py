"""The state operations with an interceptor around each: same methods, same arguments."""
