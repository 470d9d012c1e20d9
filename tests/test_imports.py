"""What starts with _ is imported only from its own package.

import-linter's contracts name modules one by one; this holds for those to come.
"""

import pytest

grimp = pytest.importorskip("grimp")  # import-linter's, in the extra `dev`


def strangers(graph):
    """Imports of a private module or package from outside of the package it is in."""
    for imported in graph.modules:
        parts = imported.split(".")
        for depth, part in enumerate(parts):
            if not part.startswith("_") or part.startswith("__"):
                continue
            home = ".".join(parts[:depth])
            for importer in graph.find_modules_that_directly_import(imported):
                if importer != home and not importer.startswith(f"{home}."):
                    yield f"{importer} imports {imported}"


def test_private_modules_are_imported_from_their_own_package_only():
    graph = grimp.build_graph("metalr", "experiments", cache_dir=None)
    assert not sorted(strangers(graph))


def test_an_import_from_outside_is_found():
    graph = grimp.ImportGraph()
    for module in ("a.b._c", "a.b.d", "a.e", "a.b._c.f"):
        graph.add_module(module)
    graph.add_import(importer="a.b.d", imported="a.b._c")
    assert not list(strangers(graph))
    graph.add_import(importer="a.e", imported="a.b._c.f")
    assert list(strangers(graph)) == ["a.e imports a.b._c.f"]
