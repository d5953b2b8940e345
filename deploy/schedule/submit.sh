#!/usr/bin/env bash
# One night: submit the job, show its log, and end with 0 only if it succeeded.
#
#     RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 deploy/schedule/submit.sh CONFIG.yaml [key=value ...]
#
# CONFIG is read on the cluster's head: it lies in this checkout, which goes there, or on the head.
# `ray job submit` answers 1 to any failure, and 0 to a job that somebody stopped; so its status is
# asked for at the end. JOB names another script than jobs/nightly.py. The token is in
# ~/.ray/auth_token, or in the file that RAY_AUTH_TOKEN_PATH names. The dashboard shows with the job
# which words it was given, by whom, and the commit of the checkout. SUBMIT_OPTIONS holds more options of
# `ray job submit`, between spaces.
set -euo pipefail
cd "$(dirname "$0")/../.."

export RAY_AUTH_MODE=token
night="bertray-$(date -u +%Y%m%d-%H%M%S)"

quoted() {
  local text=${1//[[:cntrl:]]/ }
  text=${text//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}
about="{\"config\": $(quoted "$*"), \"submitted_by\": $(quoted "$(id -un)@$HOSTNAME")"
if commit=$(git describe --always --dirty --tags 2> /dev/null); then
  about+=", \"commit\": $(quoted "$commit")"
fi

read -ra options <<< "${SUBMIT_OPTIONS:-}"

ray job submit --submission-id "$night" --working-dir . --metadata-json "$about}" \
  ${options[@]+"${options[@]}"} -- \
  python "${JOB:-jobs/nightly.py}" "$@"
# Not `grep -q`: it would end at the first match and break the pipe, which is a failure too.
ray job status --log-style record "$night" | grep succeeded > /dev/null
