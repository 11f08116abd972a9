"""Read the exported modules without importing them, and write the API reference from their docments.

A docment is the comment behind a parameter, a field or the closing bracket of a signature. Nothing of a page is
written twice: signature, shapes, defaults, docstring, errors and the cell that builds a name all come from its source.
"""

import ast
import html
import io
import re
import tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

CELL = re.compile(r"^# %% (?:\.\./)+nbs/(\S+\.ipynb) #(\S+)")
MESSAGE = 1  # `require(ok, message)`: the argument that says what is wrong


@dataclass
class Name:
    "A public name: a function, a class, a method or a constant"
    name: str
    node: ast.AST
    module: "Module"
    cell: str = ""
    methods: list["Name"] = field(default_factory=list)

    @property
    def full(self) -> str:
        return f"{self.module.full}.{self.name}"


@dataclass
class Module:
    "A module of the package, as its source says it"
    dotted: str  # without the package: "attention"
    text: str
    doc: str = ""
    notebook: str = ""  # its path under nbs/
    names: dict[str, Name] = field(default_factory=dict)
    comments: dict[int, str] = field(default_factory=dict)

    @property
    def full(self) -> str:
        return f"gpt2_course.{self.dotted}"

    @cached_property
    def lines(self) -> list[bytes]:
        return self.text.encode().split(b"\n")

    def segment(self, node: ast.AST) -> str:
        "ast.get_source_segment, which would cut the whole text into lines each time"
        rows = self.lines[node.lineno - 1 : node.end_lineno]
        rows[-1] = rows[-1][: node.end_col_offset]
        rows[0] = rows[0][node.col_offset :]
        return b"\n".join(rows).decode()


# --- reading ---


def comments_of(text: str) -> dict[int, str]:
    "line -> its comment, without the sign"
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def public_methods(owner: Name) -> list[Name]:
    "Methods and properties of a class that are not private"
    wanted = [n for n in owner.node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [Name(f"{owner.name}.{n.name}", n, owner.module, owner.cell) for n in wanted if not n.name.startswith("_") or n.name == "__call__"]


def read_module(path: Path, dotted: str) -> Module:
    "A module and its public names, in the order of its source"
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    found = Module(dotted, text, ast.get_docstring(tree) or "", comments=comments_of(text))
    public: list[str] = []
    cells = {number: m for number, line in enumerate(text.splitlines(), 1) if (m := CELL.match(line))}
    found.notebook = next((m[1] for m in cells.values()), "")
    for node in tree.body:
        targets = [t.id for part in getattr(node, "targets", []) for t in ast.walk(part) if isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store)]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            targets = [node.target.id]
        if "__all__" in targets:
            public = ast.literal_eval(node.value)
        for name in [node.name] if hasattr(node, "name") else targets:
            cell = max((n for n in cells if n < node.lineno), default=None)
            entry = Name(name, node, found, cells[cell][2] if cell else "")
            if isinstance(node, ast.ClassDef):
                entry.methods = public_methods(entry)
            found.names[name] = entry
    found.names = {name: entry for name, entry in found.names.items() if name in public}
    missing = set(public) - set(found.names)
    if missing:
        raise SystemExit(f"error: {path}: __all__ names {sorted(missing)}, which the module does not define at its top level")
    return found


def read_package(package: Path) -> dict[str, Module]:
    "All modules that notebooks export, by name; the catalogue of exercises, a folder of spoilers, is not for the site"
    return {p.stem: read_module(p, p.stem) for p in sorted(package.glob("*.py")) if p.stem not in ("__init__", "_modidx")}


# --- what a definition says ---


def last_line_of_signature(node: ast.FunctionDef, lines: list[str]) -> int:
    "The line of the bracket that closes the parameters"
    if node.returns:
        return node.returns.end_lineno
    args = [a for a in ast.walk(node.args) if isinstance(a, ast.arg)]
    last = max([node.lineno, *(a.end_lineno for a in args)])
    closing = (n for n in range(last + 1, node.body[0].lineno + 1) if lines[n - 1].lstrip().startswith(")"))
    return next(closing, last)


def arguments(node: ast.FunctionDef) -> list[tuple[str, ast.arg, ast.expr | None]]:
    "(name with its stars, argument, default) of every parameter but self"
    a, plain = node.args, [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    rows = [(p.arg, p, d) for p, d in zip(plain, defaults)]
    rows += [("*" + a.vararg.arg, a.vararg, None)] if a.vararg else []
    rows += [(p.arg, p, d) for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    rows += [("**" + a.kwarg.arg, a.kwarg, None)] if a.kwarg else []
    return [row for row in rows if row[0] not in ("self", "cls")]


def parameters(entry: Name) -> list[tuple[str, str, str, str]]:
    "(name, annotation, default, docment) of every parameter, or of every field of a dataclass"
    node, comments = entry.node, entry.module.comments
    shown = lambda part: " ".join(entry.module.segment(part).split()) if part else ""
    if isinstance(node, ast.ClassDef):
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init:
            return parameters(Name(entry.name, init, entry.module))
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)] if is_dataclass(node) else []
        return [(n.target.id, shown(n.annotation), shown(n.value), comments.get(n.end_lineno, "")) for n in fields]
    rows = arguments(node)
    ends = [(default or arg).end_lineno for _, arg, default in rows]
    mine = {end: i for i, end in enumerate(ends)}  # a comment belongs to the last parameter of its line
    mine.pop(last_line_of_signature(node, entry.module.text.splitlines()), None)  # … and there to what is returned
    docs = [comments.get(end, "") if mine.get(end) == i else "" for i, end in enumerate(ends)]
    return [(name, shown(arg.annotation), shown(default), doc) for (name, arg, default), doc in zip(rows, docs)]


def returned(entry: Name) -> tuple[str, str]:
    "(annotation, docment) of what comes back; of a one-line signature the comment says all there is"
    node, module = entry.node, entry.module
    line = last_line_of_signature(node, module.text.splitlines())
    return ast.unparse(node.returns) if node.returns else "", module.comments.get(line, "")


def signature(entry: Name) -> str:
    "name(parameters) -> type, on one line"
    parts = [n + (f": {t}" if t else "") + ((" = " if t else "=") + d if d else "") for n, t, d, _ in parameters(entry)]
    if isinstance(entry.node, ast.ClassDef):
        return f"{entry.name}({', '.join(parts)})"
    a = entry.node.args
    if a.posonlyargs:
        parts.insert(len(a.posonlyargs) - (a.posonlyargs[0].arg in ("self", "cls")), "/")
    if a.kwonlyargs and not a.vararg:
        parts.insert(len(parts) - len(a.kwonlyargs) - bool(a.kwarg), "*")
    back = f" -> {ast.unparse(entry.node.returns)}" if entry.node.returns else ""
    return f"{entry.name}({', '.join(parts)}){back}"


def message(node: ast.expr) -> str:
    "An error's text, with what is filled in between braces"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "{" + ast.unparse(v.value) + "}" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return message(node.left) + message(node.right)
    return "{" + ast.unparse(node) + "}"


def errors(entry: Name) -> list[tuple[str, str]]:
    "(exception, message) of every raise and every require of a definition"
    node, found = entry.node, []
    if isinstance(node, ast.ClassDef):
        own = ("__init__", "__post_init__")
        body = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name in own]
    else:
        body = [node]
    for child in (c for n in body for c in ast.walk(n)):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            found.append((child.lineno, ast.unparse(child.exc.func), message(child.exc.args[0]) if child.exc.args else ""))
        elif isinstance(child, ast.Call) and getattr(child.func, "id", "") == "require" and len(child.args) > MESSAGE:
            found.append((child.lineno, "UserError", message(child.args[MESSAGE])))
    return [row[1:] for row in sorted(found)]


# --- writing ---


def code(text: str) -> str:
    return f"<code>{html.escape(text, quote=False)}</code>"


def prose(text: str, link) -> str:
    "A docment as HTML: backticks become code, known names become links"
    parts = re.split(r"`([^`]+)`", text)
    return "".join((link(p) or code(p)) if i % 2 else html.escape(p, quote=False) for i, p in enumerate(parts))


def table(entry: Name, link) -> str:
    "Parameters, and what comes back"
    rows = [(code(n), code(t) if t else "", code(d) if d else "", prose(doc, link)) for n, t, d, doc in parameters(entry)]
    heads = ["field" if is_dataclass(entry.node) else "parameter", "type", "default", "meaning"]
    if not isinstance(entry.node, ast.ClassDef):
        kind, doc = returned(entry)
        if doc or kind not in ("", "None"):
            rows.append(("<em>returns</em>", code(kind) if kind else "", "", prose(doc, link)))
    if not rows:
        return ""
    keep = [i for i in range(4) if i in (0, 3) or any(row[i] for row in rows)]
    head = "".join(f'<th scope="col">{heads[i]}</th>' for i in keep)
    body = "".join("<tr>" + "".join(f"<td>{row[i]}</td>" for i in keep) + "</tr>" for row in rows)
    return f'<div class="table-wrap" tabindex="0" role="group" aria-label="{html.escape(entry.name)}: {heads[0]}s"><table class="api-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def is_dataclass(node: ast.AST) -> bool:
    return any("dataclass" in ast.unparse(d) for d in getattr(node, "decorator_list", []))


def is_property(node: ast.AST) -> bool:
    return any("property" in ast.unparse(d) for d in getattr(node, "decorator_list", []))


def describe(entry: Name, link, where, depth: int = 0) -> str:
    "One name as an object description; its methods lie inside"
    node, fence, out = entry.node, "`" * (7 - depth), []
    short = entry.name.split(".")[-1]
    if isinstance(node, ast.ClassDef):
        out.append(f"{fence}{{py:class}} {signature(entry)}")
    elif is_property(node):
        kind, _ = returned(entry)
        out.append(f"{fence}{{py:property}} {short}" + (f"\n:type: {kind}" if kind else ""))
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        kind = "method" if depth else "function"
        out.append(f"{fence}{{py:{kind}}} {signature(entry).split('.', depth)[-1]}")
        if depth and any(ast.unparse(d) in ("classmethod", "staticmethod") for d in node.decorator_list):
            out.append(f":{next(ast.unparse(d) for d in node.decorator_list if ast.unparse(d) in ('classmethod', 'staticmethod'))}:")
    else:
        out.append(f"{fence}{{py:data}} {short}")
    out.append("")
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        value = entry.module.segment(node.value)
        doc = entry.module.comments.get(node.end_lineno, "")
        out += [f"<p>{prose(doc, link)}</p>\n"] if doc else []
        out += ["```python\n" + f"{short} = {value}" + "\n```\n"] if value.count("\n") < 14 and len(value) < 1200 else []
    else:
        doc = ast.get_docstring(node) or ""
        out += [f"<p>{prose(part, link)}</p>\n" for part in re.split(r"\n\s*\n", doc) if part]
        if is_property(node):
            note = returned(entry)[1]
            out += [f"<p>{prose(note, link)}</p>\n"] if note and not doc else []
        else:
            out += [table(entry, link) + "\n"]
            wrong = errors(entry)
            if wrong:
                rows = "".join(f"<li>{link(kind) or code(kind)}: {html.escape(text, quote=False)}</li>" for kind, text in wrong)
                out += [f'<div class="raises"><p>Raises</p><ul>{rows}</ul></div>\n']
    if not depth:
        out += [f'<p class="api-where">{where(entry)}</p>\n']
    out += [describe(m, link, where, depth + 1) for m in entry.methods]
    out.append(fence + "\n")
    return "\n".join(out)


def page(module: Module, link, where) -> str:
    "The API page of a module"
    out = [f"# {module.dotted}\n", f"{{py:module}} {module.full}\n".join(["```", "```\n"])]
    out += [f'<p class="lead">{prose(module.doc, link)}</p>\n', f'<p class="api-where">{where(module)}</p>\n']
    out += [describe(entry, link, where) for entry in module.names.values()]
    return "\n".join(out)
