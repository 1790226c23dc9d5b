"""Hooks of the documentation site (mkdocs.yml): the README is its first page, and links out of docs/ become plain text."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add index.md: the README, with links to docs/ as seen from there."""
    readme = Path(config.config_file_path).with_name("README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to `repo_url`, or into their text where there is none."""
    folder = PurePosixPath(page.file.src_uri).parent

    def outside(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path = target.partition("#")[0]
        if not path or "://" in target or files.get_file_from_path(str(folder / path)) is not None:
            return match[0]
        if not (Path(config.docs_dir) / folder / path).exists() and not (Path(config.docs_dir).parent / path).exists():
            return match[0]  # a broken link, of which mkdocs warns
        return (
            f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path.removeprefix('../')})" if config.repo_url else text
        )

    return _LINK.sub(outside, markdown)
