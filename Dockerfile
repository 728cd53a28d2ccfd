# The server and the worker for NVIDIA GPUs, CUDA 12 (driver 525 or newer). NVIDIA's libraries come as packages, only those that are
# used: half of what the runtime image holds. For models that need torch build with --build-arg EXTRAS=fast,cluster,reports,torch.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04 AS build
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends binutils=2.42-* python3=3.12.* python3-venv=3.12.* \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt constraints-gpu.txt overrides.txt README.md LICENSE ./
COPY src ./src
ARG EXTRAS=fast,cluster,reports
# Exactly one ONNX Runtime: the two packages overwrite each other's files.
RUN { grep -viE '^(onnxruntime|torch)==' constraints.txt; cat constraints-gpu.txt; } > /tmp/constraints.txt \
 && python3 -m venv /opt/isocenter \
 && /opt/isocenter/bin/pip install --no-compile --no-cache-dir --disable-pip-version-check -c /tmp/constraints.txt ".[${EXTRAS}]" "onnxruntime-gpu[cuda,cudnn]" \
 && /opt/isocenter/bin/pip uninstall --yes onnxruntime onnxruntime-gpu \
 && /opt/isocenter/bin/pip install --no-compile --no-cache-dir --disable-pip-version-check --no-deps -c /tmp/constraints.txt onnxruntime-gpu
# Nobody can write there later, and a process without bytecode compiles all that it imports at each start: what the program imports stays
# compiled. Nothing here uses ONNX's test data or ONNX Runtime's library for C++.
RUN find /opt/isocenter -depth '(' -name tests -o -path '*/onnx/backend/test' ')' -type d -exec rm -rf {} + \
 && find /opt/isocenter -depth -name __pycache__ -type d -exec rm -rf {} + \
 && find /opt/isocenter '(' -name 'libonnxruntime.so*' -o -name '*nvrtc*.alt.so*' ')' -delete \
 && find /opt/isocenter -name '*.so' -size +1M -not -path '*.libs/*' -not -path '*/nvidia/*' -not -path '*/torch/*' -exec strip --strip-unneeded {} + \
 && /opt/isocenter/bin/python -m compileall -q /opt/isocenter/lib/python3.12/site-packages/isocenter \
 && for name in SimpleITK celery.apps.worker celery.concurrency.prefork highdicom kombu.transport.redis matplotlib.pyplot nibabel numba obstore psycopg \
    pydicom isocenter.http.app; do /opt/isocenter/bin/python -c "import ${name}" || echo "without ${name}"; done
# cuDNN's recurrent layers and attention, a fourth of it, are loaded by nothing but torch: segmentation networks have neither.
RUN case ",${EXTRAS}," in *,torch,*|*,nnunet,*|*,nninteractive,*) ;; *) find /opt/isocenter -name 'libcudnn_adv.so*' -delete ;; esac

FROM nvidia/cuda:12.8.1-base-ubuntu24.04
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3=3.12.* \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --home-dir /home/isocenter isocenter \
 && mkdir -p /data /code/studies /code/predictions \
 && chown -R isocenter /data /code
COPY --from=build /opt/isocenter /opt/isocenter
# ONNX Runtime looks for CUDA's libraries where the loader does.
ENV NVIDIA_LIBRARIES=/opt/isocenter/lib/python3.12/site-packages/nvidia
ENV PATH=/opt/isocenter/bin:$PATH \
    LD_LIBRARY_PATH=$NVIDIA_LIBRARIES/cublas/lib:$NVIDIA_LIBRARIES/cuda_nvrtc/lib:$NVIDIA_LIBRARIES/cuda_runtime/lib:$NVIDIA_LIBRARIES/cudnn/lib:$NVIDIA_LIBRARIES/cufft/lib:$NVIDIA_LIBRARIES/curand/lib:$NVIDIA_LIBRARIES/nvjitlink/lib:/usr/local/nvidia/lib64 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    MPLCONFIGDIR=/data/matplotlib \
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
