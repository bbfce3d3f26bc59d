"""The local scheduler: ranks as processes of this machine."""
