"""Real files of each format, made here."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence

from rolecall.retrieval.sources import Source, kind_of


def source(name: str) -> Source:
    kind, language = kind_of(name) or ("", "")
    return Source(name, kind, language, 1, 1, 1, 1)


def pdf(pages: Sequence[Sequence[str]], encrypted: bool = False) -> bytes:
    """A page for each list of lines."""
    bodies = [b"", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for lines in pages:
        shown = b" ".join(b"(" + line.encode("latin-1") + b") Tj T*" for line in lines)
        stream = b"BT /F1 12 Tf 72 720 Td 14 TL " + shown + b" ET"
        bodies.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        bodies.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % len(bodies)
        )
        kids.append(b"%d 0 R" % len(bodies))
    bodies[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    bodies[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    rows = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1) + rows
    secret = b"<" + b"41" * 32 + b">"  # of no password: a reader finds that the empty one is wrong
    lock = b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O %s /U %s >> /ID [<00> <00>]" % (secret, secret)
    trailer = b"trailer << /Size %d /Root 1 0 R %s >>\n" % (len(bodies) + 1, lock if encrypted else b"")
    return out + table + trailer + b"startxref\n%d\n%%%%EOF\n" % len(out)


def docx(heading: str, *paragraphs: str, body: str = "") -> bytes:
    """The least that is one; `body` is XML after the paragraphs."""
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    package = "http://schemas.openxmlformats.org/package/2006"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    said = "".join(f"<w:p><w:r><w:t>{paragraph}</w:t></w:r></w:p>" for paragraph in paragraphs)
    title = f'<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>{heading}</w:t></w:r></w:p>'
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        f'<Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="r" Type="{office}" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{word}"><w:body>{title}{said}{body}</w:body></w:document>',
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as container:
        for name, content in parts.items():
            container.writestr(name, content)
    return out.getvalue()


def pptx(*slides: tuple[str, str]) -> bytes:
    """(title, body) of each slide, whose notes say `note on TITLE`."""
    from pptx import Presentation

    deck = Presentation()
    for title, body in slides:
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = body
        slide.notes_slide.notes_text_frame.text = f"note on {title}"
    return _saved(deck)


def xlsx(**sheets: Sequence[Sequence[object]]) -> bytes:
    from openpyxl import Workbook

    book = Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    return _saved(book)


def notebook(*cells: tuple[str, str]) -> bytes:
    """(type, source) of each cell; every code cell printed `output`."""
    printed = {"outputs": [{"output_type": "stream", "text": ["output"]}], "execution_count": 1, "metadata": {}}
    written = [
        {"cell_type": kind, "source": text.splitlines(keepends=True)} | (printed if kind == "code" else {})
        for kind, text in cells
    ]
    return json.dumps({"metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "cells": written}).encode()


def with_part(document: bytes, name: str, content: bytes) -> bytes:
    """An Office file with one part in place of what it held there."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(document)) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for part in old.infolist():
            if part.filename != name:
                new.writestr(part.filename, old.read(part))
        new.writestr(name, content)
    return out.getvalue()


def _saved(document: object) -> bytes:
    out = io.BytesIO()
    document.save(out)  # type: ignore[attr-defined]
    return out.getvalue()
