# syntax=docker/dockerfile:1
# The server and the worker for NVIDIA GPUs: ONNX Runtime with CUDA 12 (driver 525 or newer). For models that need torch build
# with --build-arg EXTRAS=fast,cluster,reports,torch.
FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3=3.12.* python3-venv=3.12.* \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt overrides.txt README.md LICENSE ./
COPY src ./src
ARG EXTRAS=fast,cluster,reports
# Exactly one ONNX Runtime: the two packages overwrite each other's files.
RUN grep -viE '^(onnxruntime|torch)==' constraints.txt > /tmp/constraints.txt \
 && python3 -m venv /opt/isocenter \
 && /opt/isocenter/bin/pip install --no-cache-dir --disable-pip-version-check -c /tmp/constraints.txt ".[${EXTRAS}]" \
 && /opt/isocenter/bin/pip uninstall --yes onnxruntime \
 && /opt/isocenter/bin/pip install --no-cache-dir --disable-pip-version-check -c /tmp/constraints.txt "onnxruntime-gpu>=1.20" \
 && find /opt/isocenter -depth -name tests -type d -exec rm -rf {} + \
 && find /opt/isocenter -depth -name __pycache__ -type d -exec rm -rf {} +

FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3=3.12.* \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --home-dir /home/isocenter isocenter \
 && mkdir -p /data /code/studies /code/predictions \
 && chown -R isocenter /data /code
COPY --from=build /opt/isocenter /opt/isocenter
ENV PATH=/opt/isocenter/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    ISOCENTER_HOME=/data \
    ISOCENTER_HOST=0.0.0.0 \
    ISOCENTER_PORTS=8000,8002,8765 \
    ISOCENTER_CONTAINER=1
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000 8002 8765
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('ISOCENTER_PORTS', '8000').split(',')[0] + '/healthz', timeout=4)"]
CMD ["isocenter", "serve"]
