# The suite in an image: `docker build -t replicate .`, then
#   docker run -p 8888:8888 replicate                            JupyterLab, its token in the log
#   docker run -v "$PWD/out:/out" replicate replicate run -f params/cpu.yaml -p RUN_DIR=/out
# For a GPU torch must come with CUDA; the base image needs none of its own. Where the package index serves another build,
# TORCH names what to install in its place: the same version, as the address of a wheel.
#   docker build --build-arg TORCH=URL -t replicate-gpu .
#   docker run --gpus all -v "$PWD/out:/out" replicate-gpu python benchmarks/gpu.py --out /out -p RUN_DIR=/out/run
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1 \
    PATH=/opt/venv/bin:$PATH HOME=/home/replicate MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /home/replicate/suite

# Packages before sources: a change of the code does not install them again. torch first, from the pinned line.
ARG TORCH=
COPY requirements.lock ./
RUN python -m venv /opt/venv \
    && pip install --quiet "${TORCH:-$(grep '^torch==' requirements.lock)}" \
    && pip install --quiet -r requirements.lock

COPY . .
RUN pip install --quiet --no-deps --no-build-isolation --editable . \
    && chown -R 1000:1000 /home/replicate

USER 1000:1000
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--notebook-dir=/home/replicate/suite"]
