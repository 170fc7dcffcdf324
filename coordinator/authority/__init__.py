"""The coordinator as a certificate authority: who may connect, and who may no more."""
