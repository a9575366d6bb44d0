"""The hospital's verbs, one file a domain. A service takes a session, changes it, and never commits."""
