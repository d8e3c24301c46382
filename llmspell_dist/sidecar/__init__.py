"""The HTTP sidecar: the state layer beside an app of any language.

`app` puts it together, `serving` runs it, `routes` are its services, `auth` says who may.
"""
