#!/bin/bash
# What a machine of lifecycle.cloud.ec2 does from its first minute to its last; the lines above this one name
# JOB DATA TABLE CHECKPOINTS MODEL IMAGE REGION LOGS HYPERPARAMETERS MAX_MINUTES IDLE_MINUTES ROOT POLL_SECONDS.
set -uo pipefail
METADATA=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}

# Whatever happens, the machine ends: at the latest after the time that was paid for, and its template terminates it.
shutdown -P "+$MAX_MINUTES"
finish() {
  aws s3 sync --only-show-errors "$ROOT/checkpoints" "$CHECKPOINTS"
  [ -s "$ROOT/output/failure" ] && aws s3 cp --only-show-errors "$ROOT/output/failure" "$MODEL/failure"
  shutdown -P now
}
trap finish EXIT

# IMDSv2: a token first. 404 means that nobody wants the machine back.
interrupted() {
  local token
  token=$(curl -sf -m 2 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$METADATA/latest/api/token") || return 1
  curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" "$METADATA/latest/meta-data/spot/instance-action" > /dev/null
}

idle() {
  [ -z "$(find "$ROOT" -newermt "-$IDLE_MINUTES minutes" -print -quit)" ]
}

mkdir -p "$ROOT"/input/config "$ROOT"/input/data/training "$ROOT"/checkpoints "$ROOT"/model "$ROOT"/output
printf '%s' "$HYPERPARAMETERS" > "$ROOT/input/config/hyperparameters.json"
aws ecr get-login-password --region "$REGION" | docker login --username AWS --password-stdin "${IMAGE%%/*}" || exit 1
# A packed data set is read from S3 by the trainer itself, with the machine's role; files are copied.
[ -n "$TABLE" ] || aws s3 sync --only-show-errors "$DATA" "$ROOT/input/data/training" || exit 1
aws s3 sync --only-show-errors "$CHECKPOINTS" "$ROOT/checkpoints" || exit 1

GPUS=$(command -v nvidia-smi > /dev/null && echo "--gpus all")
# shellcheck disable=SC2086 # no GPU, no argument
docker run --detach --name train $GPUS --volume "$ROOT:/opt/ml" \
  --env IMGV_METRICS_SECONDS=60 --env AWS_DEFAULT_REGION="$REGION" \
  --log-driver awslogs --log-opt awslogs-region="$REGION" --log-opt awslogs-group="$LOGS" \
  --log-opt awslogs-stream="$JOB" "$IMAGE" train ${TABLE:+--dataset "$TABLE"} || exit 1

ROUND=0
while [ "$(docker inspect --format '{{.State.Running}}' train)" = true ]; do
  if interrupted; then
    echo "the machine is wanted back: a checkpoint, and the end"
    docker stop --time 90 train # SIGTERM first; AWS leaves two minutes
    exit 0
  fi
  if idle; then
    echo "nothing was written for $IDLE_MINUTES minutes"
    docker stop --time 90 train
    exit 0
  fi
  ROUND=$((ROUND + 1))
  [ $((ROUND % 12)) -eq 0 ] && aws s3 sync --only-show-errors "$ROOT/checkpoints" "$CHECKPOINTS"
  sleep "$POLL_SECONDS"
done

if [ "$(docker inspect --format '{{.State.ExitCode}}' train)" = 0 ]; then
  tar -C "$ROOT/model" -czf "$ROOT/model.tar.gz" .
  aws s3 cp --only-show-errors "$ROOT/model.tar.gz" "$MODEL/output/model.tar.gz"
fi
