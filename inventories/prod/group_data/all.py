"""What is true for every production host. Every setting of a role is in roles/<role>/README.md."""

ssh_user = "admin"
_sudo = True
