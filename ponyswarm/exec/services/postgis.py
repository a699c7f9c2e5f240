"""PostGIS: PostgreSQL whose databases have it from the start, for only a superuser can add it."""

from __future__ import annotations

import re
from pathlib import Path

from ponyswarm.exec.packages import install_line
from ponyswarm.exec.services.postgresql import EXTENSIONS, Admin, Postgresql
from ponyswarm.exec.services.service import Missing, Offer, Options


class Postgis(Postgresql):
    name = "postgis"
    scheme = "postgis"
    engine = "django.contrib.gis.db.backends.postgis"
    extensions = (*EXTENSIONS, "postgis", "postgis_raster")

    async def probe(self, options: Options) -> Offer | Missing:
        found = await super().probe(options)
        if isinstance(found, Missing):
            return found
        if options.host:
            rows = await self._own(options, "psql").run(
                "SELECT default_version FROM pg_available_extensions WHERE name = 'postgis'"
            )
            version = rows[0][0] if rows else ""
        else:
            version = _version(str(self._binaries(options)))
        major = found.version.partition(".")[0]
        if not version:
            return Missing(
                why=f"PostgreSQL {found.version} is here, but not its PostGIS",
                remedy=install_line(f"postgresql-{major}-postgis-3", dnf="postgis", apk="postgis"),
            )
        return Offer(name=self.name, version=version, how=f"{found.how}, {found.version}")

    async def versions(self, admin: Admin, database: str) -> dict[str, str]:
        rows = await admin.run(
            "SELECT extversion FROM pg_extension WHERE extname = 'postgis'", database
        )
        if not rows:
            await admin.run("CREATE EXTENSION postgis; CREATE EXTENSION postgis_raster;", database)
            return await self.versions(admin, database)
        return {**await super().versions(admin, database), "postgis": rows[0][0]}


def _version(binaries: str) -> str:
    """PostGIS's version beside these programs; "" when it is not there."""
    folder = Path(binaries).parent
    for share in (Path("/usr/share/postgresql", folder.name), folder / "share"):
        try:
            text = (share / "extension" / "postgis.control").read_text()
        except OSError:
            continue
        match = re.search(r"default_version\s*=\s*'([^']+)'", text)
        if match:
            return match[1]
    return ""
