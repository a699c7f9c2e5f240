"""PonySwarm's compiler of test modules: writes the bytecode that pytest would write.

Run as ``python -E -S this.py LISTING SOURCE OUT [SITE-PACKAGES…]`` in a sandbox of its own,
where nothing of the project runs. Test modules are rewritten by the pytest that is in the
site-packages, other modules compiled as import would. Standard library only, Python 2.7 to
3.14 and PyPy; a module that does not compile is passed over.
"""

import os
import sys


def main(listing, tree, out, packages):
    sys.path[:] = sys.path[1:] + packages
    with open(listing, "rb") as file:
        paths = file.read().decode("utf-8").splitlines()
    compile_test = test_compiler()
    for path in paths:
        folder, name = os.path.split(path)
        target = os.path.join(out, folder, "__pycache__")
        if not os.path.isdir(target):
            os.makedirs(target)
        try:
            if is_test(name):
                if compile_test is not None:
                    compile_test(os.path.join(tree, path), os.path.join(target, name[:-3]))
            else:
                compile_plain(os.path.join(tree, path), os.path.join(target, name[:-3]))
        except Exception:
            # A stranger's module breaks a compiler in any way; the run will say how.
            pass


def is_test(name):
    return name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py"


def test_compiler():
    """How this pytest rewrites and writes a module, or None when it is none that we know."""
    try:
        from pathlib import Path

        from _pytest.assertion import rewrite

        tail = rewrite.PYC_TAIL
        read, write = rewrite._rewrite_test, rewrite._write_pyc_fp
    except Exception:
        # Whatever the job's pytest raises when it is imported, it is not this program's affair.
        return None

    def compile_test(source, target):
        fact, code = read(Path(source), None)
        with open(target + tail, "wb") as file:
            write(file, fact, code)

    return compile_test


def compile_plain(source, target):
    import py_compile

    tag = sys.implementation.cache_tag
    py_compile.compile(source, cfile="%s.%s.pyc" % (target, tag), dfile=source, doraise=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
