"""Settings of the users role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from gpurack.settings import Location, RoleSettings
from gpurack.ssh_keys import check_public_key, key_blob, public_key_of

# Accounts Debian and Ubuntu create; the host itself is asked for those of other packages.
SYSTEM_ACCOUNTS = frozenset(
    {
        "root",
        "daemon",
        "bin",
        "sys",
        "sync",
        "games",
        "man",
        "lp",
        "mail",
        "news",
        "uucp",
        "proxy",
        "www-data",
        "backup",
        "list",
        "irc",
        "nobody",
        "sshd",
        "messagebus",
        "_apt",
    }
)


def _person(name: str) -> str:
    if name in SYSTEM_ACCOUNTS:
        raise ValueError("this is a system account, not a person's")
    return name


Name = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$", description="Login name."), AfterValidator(_person)]
Group = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]


class Administrator(BaseModel):
    """A person who administers the host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="Login name.")
    full_name: str = Field(default="", pattern=r"^[^:,\n]*$", description="The person's name.")
    ssh_keys: tuple[Annotated[str, AfterValidator(check_public_key)], ...] = Field(
        min_length=1, description="Public keys, the only ones the account accepts."
    )
    sudo: Literal["nopasswd", "password", "none"] = Field(
        default="nopasswd", description="Root rights: without a password, with the account's password, or none."
    )
    password_hash: SecretStr | None = Field(
        default=None,
        description='Hash of the account\'s password (mkpasswd -m yescrypt), for sudo = "password" only.',
    )
    groups: tuple[Group, ...] = Field(default=(), description="Further groups; all others are taken away.")
    shell: str = Field(default="/bin/bash", pattern=r"^/[^:\s]+$", description="Login shell.")

    @model_validator(mode="after")
    def _password_where_sudo_asks_for_one(self) -> Administrator:
        if self.sudo == "password" and self.password_hash is None:
            raise ValueError('sudo = "password" needs password_hash: without a password sudo could never succeed')
        if self.sudo != "password" and self.password_hash is not None:
            raise ValueError('password_hash is for sudo = "password" only: otherwise the account\'s password is locked')
        if self.password_hash is not None and not self.password_hash.get_secret_value().startswith("$"):
            raise ValueError("password_hash is a hash such as mkpasswd -m yescrypt prints, not the password itself")
        return self

    @property
    def all_groups(self) -> frozenset[str]:
        """The secondary groups the account is in."""
        return frozenset(self.groups)


class UsersSettings(RoleSettings):
    """Who administers a host, and who no longer does."""

    administrators: tuple[Administrator, ...] = Field(default=(), description="People with an account on the host.")
    leavers: tuple[Name, ...] = Field(
        default=(), description="People whose access is taken away, wherever they still have an account."
    )
    remove_leavers_home: bool = Field(default=False, description="Delete the home directories of leavers too.")

    def packages_for(self, distribution: str, codename: str) -> tuple[str, ...]:
        """What administrators become root with."""
        del distribution, codename
        return ("sudo",)

    @field_validator("administrators")
    @classmethod
    def _names_are_unique(cls, administrators: tuple[Administrator, ...]) -> tuple[Administrator, ...]:
        names = [person.name for person in administrators]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"listed twice: {', '.join(twice)}")
        return administrators

    @model_validator(mode="after")
    def _nobody_is_both(self) -> UsersSettings:
        if both := sorted({person.name for person in self.administrators} & set(self.leavers)):
            raise ValueError(f"both administrator and leaver: {', '.join(both)}; take each out of one list")
        return self

    def problems_on(self, host: str, data: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        """Yield settings that would take away the access gpurack itself uses, as far as the inventory tells."""
        del host
        user = data.get("ssh_user")
        if user in self.leavers:
            yield (
                ("leavers", self.leavers.index(user)),
                f"gpurack connects as {user} (ssh_user); connect as somebody else before taking this access away",
            )
        for number, person in enumerate(self.administrators):
            if person.name != user:
                continue
            if person.sudo == "none":
                yield (
                    ("administrators", number, "sudo"),
                    f"gpurack connects as {user} (ssh_user) and needs root rights",
                )
            if person.sudo == "password" and not data.get("_sudo_password"):
                yield (
                    ("administrators", number, "sudo"),
                    f"gpurack connects as {user} (ssh_user) and would be asked for a password; "
                    'set "nopasswd", or _sudo_password in the inventory',
                )
            key = public_key_of(Path(str(data["ssh_key"])).expanduser()) if data.get("ssh_key") else None
            if key is not None and key not in map(key_blob, person.ssh_keys):
                yield (
                    ("administrators", number, "ssh_keys"),
                    f"the key gpurack connects with as {user} (ssh_key) is not among them; it would be locked out",
                )
