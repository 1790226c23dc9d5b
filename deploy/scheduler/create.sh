#!/usr/bin/env bash
# A daily run by Cloud Scheduler, from the Flex template of deploy/build.sh.
#
#   PROJECT=my-project REGION=us-central1 BUCKET=my-bucket \
#       WORKER=bestkept-worker@my-project.iam.gserviceaccount.com LAUNCHER=bestkept-launcher@my-project.iam.gserviceaccount.com \
#       deploy/scheduler/create.sh
#
# The bucket holds configs/dataflow_gpu.yaml, filled in. Dataflow refuses a second job of a name that still runs, so a slow run is
# not overtaken by the next. What is new in the corpus is scored, each change of it makes a version under curated/, and
# curated/latest.json names the last complete one (`bestkept latest gs://$BUCKET/curated`). Not run against the service by the
# project's tests.
set -euo pipefail
: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?}" "${WORKER:?}" "${LAUNCHER:?}"

body=$(mktemp)
trap 'rm -f "$body"' EXIT
cat > "$body" << JSON
{
  "launchParameter": {
    "jobName": "bestkept-daily",
    "containerSpecGcsPath": "gs://$BUCKET/templates/bestkept.json",
    "parameters": {
      "command": "run",
      "config": "gs://$BUCKET/configs/dataflow_gpu.yaml",
      "output_path": "gs://$BUCKET/curated",
      "output_versions": "true"
    },
    "environment": {
      "tempLocation": "gs://$BUCKET/tmp",
      "serviceAccountEmail": "$WORKER"
    }
  }
}
JSON

gcloud scheduler jobs create http bestkept-daily \
    --project "$PROJECT" \
    --location "$REGION" \
    --schedule "0 3 * * *" \
    --time-zone "Etc/UTC" \
    --uri "https://dataflow.googleapis.com/v1b3/projects/$PROJECT/locations/$REGION/flexTemplates:launch" \
    --http-method POST \
    --headers "Content-Type=application/json" \
    --message-body-from-file "$body" \
    --oauth-service-account-email "$LAUNCHER" \
    --oauth-token-scope "https://www.googleapis.com/auth/cloud-platform"
