"""Templates: the page and `/docs`, filled in, with the name and logo that the operator has set, and the assets."""

from typing import Any, Final

from jinja2 import DictLoader, Environment, StrictUndefined

from app.config import Settings
from app.web.assets import STATIC, Asset, assets
from app.web.languages import DEFAULT, Language, languages
from app.web.logo import read_logo

HTML: Final = "text/html; charset=utf-8"
LOGO_NAME: Final = "logo"


class Templates:
    """The templates of the service with these settings."""

    def __init__(self, settings: Settings) -> None:
        """Read the templates, the logo and the assets.

        Raises:
            Unusable: the logo is not fit.
        """
        base = settings.base_path
        self.assets = assets()
        self.logo = None if settings.logo is None else read_logo(settings.logo)
        texts = {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.html")}
        self._environment = Environment(
            loader=DictLoader(texts),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(
            title=settings.title, base=base, logo=None if self.logo is None else f"{base}/static/{LOGO_NAME}"
        )
        self._environment.get_template("page.html")  # compiled now; the first reader would wait, and others with it
        self.docs = Asset.of(self._filled("docs.html", languages()[DEFAULT]), HTML)

    def page(self, language: Language, context: dict[str, Any]) -> bytes:
        """The page in this language."""
        return self._filled("page.html", language, context)

    def _filled(self, name: str, language: Language, context: dict[str, Any] | None = None) -> bytes:
        text = self._environment.get_template(name).render(
            context or {},
            language=language.code,
            direction=language.direction,
            t=language.text,
            human_size=language.size,
            human_time=language.moment,
            refusal=language.refusal,
        )
        return text.encode("utf-8")
