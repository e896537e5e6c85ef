"""Makes the libraries of llama-cpp-py-sync load where the C library is older than 2.38: python older_libc.py FOLDER_OF_THE_PACKAGE

They were linked against 2.38, of which they need only four functions that read numbers, under the names that C23 gave them. Here
that version is marked as not required, and the functions come from a library of their own, which is to be preloaded; its path
is printed. How fast llama.cpp is does not depend on them.
"""

import pathlib
import subprocess
import sys

SOURCE = """
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
long __isoc23_strtol(const char *text, char **end, int base) { return strtol(text, end, base); }
unsigned long __isoc23_strtoul(const char *text, char **end, int base) { return strtoul(text, end, base); }
unsigned long long __isoc23_strtoull(const char *text, char **end, int base) { return strtoull(text, end, base); }
int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list values;
    va_start(values, format);
    int count = vsscanf(text, format, values);
    va_end(values);
    return count;
}
"""
REQUIRED, WEAK = b"\0\0", b"\2\0"


def elf_hash(name):
    """As the System V ABI defines it."""
    value = 0
    for byte in name:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high
    return value


def main(folder):
    folder = pathlib.Path(folder)
    # An entry for a version begins with the hash of its name; its flags follow.
    version = elf_hash(b"GLIBC_2.38").to_bytes(4, "little")
    for library in folder.glob("*.so*"):
        library.write_bytes(library.read_bytes().replace(version + REQUIRED, version + WEAK))
    preloaded = folder / "older-libc.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", str(preloaded)], input=SOURCE, text=True, check=True)
    print(preloaded)


main(*sys.argv[1:])
