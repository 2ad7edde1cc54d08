"""Pages and pictures that mkdocs gets from the code at each build; none of them is committed."""

from generated import commands, configuration, methods
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated files to those of `docs/`."""
    pages: dict[str, str] = {
        "reference/cli.md": commands.page(),
        "reference/configuration.md": configuration.page(),
        **methods.pages(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files
