# The suite in an image: `docker build -t replicate .`, then
#   docker run -p 8888:8888 replicate                            JupyterLab, its token in the log
#   docker run -v "$PWD/out:/out" replicate replicate run -f params/cpu.yaml -p RUN_DIR=/out
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1 \
    PATH=/opt/venv/bin:$PATH HOME=/home/replicate MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /home/replicate/suite

# Packages before sources: a change of the code does not install them again. torch first, from the pinned line.
COPY requirements.lock ./
RUN python -m venv /opt/venv \
    && pip install --quiet "$(grep '^torch==' requirements.lock)" \
    && pip install --quiet -r requirements.lock

COPY . .
RUN pip install --quiet --no-deps --no-build-isolation --editable . \
    && chown -R 1000:1000 /home/replicate

USER 1000:1000
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--notebook-dir=/home/replicate/suite"]
