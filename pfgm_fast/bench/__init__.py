"""How fast the field is on this machine, and beside what others write."""
