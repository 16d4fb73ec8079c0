#!/bin/sh
# root.sh FOLDER PIP: an aarch64 Python with all that the engine needs, which another CPU runs by emulation (qemu-user).
#
# FOLDER/root  unpacked packages of Debian for arm64: Python and what it needs
# FOLDER/lib   Python packages for aarch64, in the versions of constraints.txt
# FOLDER/bin   python, and qemu where the machine has none
#
# apt and pip fetch for the other architecture into FOLDER: nothing is installed on this machine, and nobody needs to be root. Needs a Debian
# (12 or newer) and pip. Whatever the FOLDER held is made anew.
set -eu
[ ! -e "$1" ] || [ -e "$1/.emulated" ] || { echo "$1 exists and is not from here; name another folder" >&2; exit 2; }
rm -rf "$1"
mkdir -p "$1"
folder=$(cd "$1" && pwd) pip=$2
project=$(cd "$(dirname "$0")/../.." && pwd)
touch "$folder/.emulated"

# An apt of its own, which knows of no installed package, so that it fetches everything that Python depends on.
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/root/proc" "$folder/bin"
: > "$folder/apt/status"
host=$(dpkg --print-architecture)
cat > "$folder/apt/config" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; "$host"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Dir::State "$folder/apt";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt";
END
export APT_CONFIG="$folder/apt/config"
apt-get -qq update
apt-get -qq --yes --download-only install python3 libstdc++6
for package in "$folder"/apt/archives/*.deb; do dpkg -x "$package" "$folder/root"; done
[ -e "$folder/root/lib" ] || ln -s usr/lib "$folder/root/lib"
qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64) || {
    (cd "$folder/apt" && apt-get -qq download "qemu-user-static:$host" && dpkg -x qemu-user-static_*.deb "$folder/bin")
    qemu=$folder/bin/usr/bin/qemu-aarch64-static
}
rm -rf "$folder/apt"

# What LLVM and ONNX Runtime read about the CPU: that of a Raspberry Pi 4, which is also what qemu emulates.
cat > "$folder/root/proc/cpuinfo" <<END
processor	: 0
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd08
CPU revision	: 3

END

# Python takes itself for that of a virtual environment in FOLDER, and starts itself again by the same script.
interpreter=$(ls -d "$folder"/root/usr/bin/python3.[0-9]* | grep -v config | head -1)
version=${interpreter##*/python}
cat > "$folder/pyvenv.cfg" <<END
home = $folder/root/usr/bin
include-system-site-packages = false
END
cat > "$folder/bin/python" <<END
#!/bin/sh
exec $qemu -cpu cortex-a72 -L $folder/root -0 $folder/bin/python $interpreter "\$@"
END
chmod +x "$folder/bin/python"

packages=$folder/lib/python$version/site-packages
"$pip" install --quiet --disable-pip-version-check --target "$packages" --python-version "$version" --only-binary=:all: \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    --constraint "$project/constraints.txt" numpy numba onnx onnxruntime onnxscript click pytest hypothesis
echo "$folder/engine" > "$packages/engine.pth"
