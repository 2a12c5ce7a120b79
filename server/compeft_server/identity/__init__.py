"""Keys, certificate authority, invitations at work (registrar)."""
