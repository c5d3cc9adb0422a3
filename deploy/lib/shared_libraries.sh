# What shared libraries a program needs, for deploy/bundle. Sourced after
# packages.sh.

# Those of glibc, which belong to the machine: the loader and they must be of
# one version.
EXPERTMESH_GLIBC='^(ld-linux-x86-64|libc|libm|libmvec|libdl|libpthread|librt|libresolv|libutil|libanl)[.]so[.]'

# libraries_of PROGRAM: prints "NAME PATH" of each but glibc's, also those that
# others need.
libraries_of() {
  local listed
  listed=$(env -u LD_LIBRARY_PATH ldd "$1") || fail "ldd cannot read $1"
  if grep -q 'not found' <<<"$listed"; then
    fail "$1 lacks libraries: $(sed -n 's/ => not found.*//p' <<<"$listed" | tr -s '\n\t' ' ')"
  fi
  awk -v glibc="$EXPERTMESH_GLIBC" \
    '$2 == "=>" && $1 !~ glibc { print $1, $3 }' <<<"$listed"
}

# copy_libraries_of PROGRAM FOLDER
copy_libraries_of() {
  local listed name path
  listed=$(libraries_of "$1") || return
  while read -r name path; do
    [[ -e $2/$name ]] || cp -L -- "$path" "$2/$name"
    chmod u+w,a+r -- "$2/$name"
  done <<<"$listed"
}

# foreign_libraries_of PROGRAM FOLDER: prints the paths outside FOLDER.
foreign_libraries_of() {
  local listed name path
  listed=$(libraries_of "$1") || return
  while read -r name path; do
    [[ $(realpath -- "$path") == "$2"/* ]] || printf '%s\n' "$path"
  done <<<"$listed"
}

# soname_of LIBRARY: the name it is loaded by.
soname_of() {
  readelf -d -- "$1" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p'
}

# needed_glibc FILE...: the newest version whose symbols they use.
needed_glibc() {
  readelf -V --wide -- "$@" 2>/dev/null |
    sed -n 's/.*Name: GLIBC_\([0-9.]*\) .*/\1/p' | sort -uV | tail -n 1
}
