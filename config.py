"""pyinfra reads this file before it connects to anything: the inventory is validated as a whole first."""

from gpurack.preflight import preflight

preflight()
