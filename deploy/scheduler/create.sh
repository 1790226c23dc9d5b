#!/usr/bin/env bash
# A daily run by Cloud Scheduler, from the Flex template of deploy/build.sh.
#
#   PROJECT=my-project REGION=us-central1 BUCKET=my-bucket \
#       WORKER=bestkept-worker@my-project.iam.gserviceaccount.com LAUNCHER=bestkept-launcher@my-project.iam.gserviceaccount.com \
#       deploy/scheduler/create.sh
#
# The bucket contains a completed configs/dataflow_gpu.yaml. Dataflow refuses a second job with the name of a running one, so
# runs do not overlap. New files of the corpus are scored, each change of the corpus makes a version under curated/, and
# curated/latest.json names the last complete version (`bestkept latest gs://$BUCKET/curated`). The project's tests do not run it
# against the service.
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
