#!/usr/bin/env bash
# Builds an image that is Dataflow's worker and Flex launcher, pushes it, and writes the Flex template that names it.
#
#   deploy/build.sh --repository us-central1-docker.pkg.dev/my-project/bestkept [--model deploy/models/my-reward-model] \
#       [--gpu] [--tag 0.1.0] [--template gs://my-bucket/templates/bestkept.json]
#
# Without --model the image has no weights: set model.path to a URL on gs:// (`bestkept model fetch`).
# Needs docker, and gcloud for --template. The project's tests do not run it against the service.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
}

repository='' model='' tag='' template='' name=bestkept file=deploy/Dockerfile
while [ $# -gt 0 ]; do
    case "$1" in
        --gpu) name=bestkept-gpu file=deploy/Dockerfile.gpu; shift ;;
        --repository | --model | --tag | --template)
            [ $# -ge 2 ] || usage
            declare "${1#--}=$2"
            shift 2
            ;;
        *) usage ;;
    esac
done
[ -n "$repository" ] || usage

inside=/models/reward
if [ -z "$model" ]; then
    inside=''
    model=$(mktemp -d deploy/models/none.XXXXXX)  # an empty folder for COPY
    trap 'rmdir "$model"' EXIT
elif [ ! -f "$model/config.json" ] || ! ls "$model"/*.safetensors > /dev/null 2>&1; then
    echo "build.sh: $model holds no config.json and *.safetensors; expected a model directory below the repository" >&2
    exit 2
fi
case "$(realpath "$model")" in
    "$PWD"/*) ;;
    *) echo "build.sh: $model lies outside the repository, and docker sees nothing there; copy it to deploy/models/" >&2; exit 2 ;;
esac
model=$(realpath --relative-to=. "$model")
tag=${tag:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}
image="$repository/$name:$tag"

docker build --platform linux/amd64 --file "$file" --build-arg MODEL="$model" --tag "$image" .
# push only an image that has the runner and whose model, by the headers of the weights, is complete
docker run --rm --interactive --platform linux/amd64 --entrypoint python "$image" - $inside << 'PYTHON'
import sys
from pathlib import Path

import apache_beam.runners.dataflow.internal.apiclient

from rm.checkpoint.weight_files import refuse_damaged, require_files
from rm.dry_run import DryRun

for inside in map(Path, sys.argv[1:]):
    require_files(inside)
    refuse_damaged(inside)
    DryRun.of(inside, max_length=512, too_long="truncate", tokens_per_batch=None, device="cpu")
PYTHON
docker push "$image"

if [ -n "$template" ]; then
    gcloud dataflow flex-template build "$template" \
        --image "$image" --sdk-language PYTHON --metadata-file deploy/flex/metadata.json
fi
echo "runner.options.sdk_container_image=$image"
