"""Drop-in modules for the original code of PFGM, PFGM++, the stable target field and EDM.

The functions have the names, arguments, shapes, dtypes, order of random draws and quirks of the originals; each
module's docstring says where it differs. Nothing outside of this package knows of the quirks.
"""

from pfgm_fast.compat import edm, pfgmpp, poisson_flow, stf

__all__ = ["edm", "pfgmpp", "poisson_flow", "stf"]
