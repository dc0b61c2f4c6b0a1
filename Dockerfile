# Siltstone on processors. The GPU image is Dockerfile.gpu; only where torch comes from differs.
# Neither holds a core: `siltstone core add` brings one into the home folder (/var/lib/siltstone).
#
# PYTHON_IMAGE: name it by digest for a release: docker build --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# pip takes torch's CPU build from here, and everything else from its usual index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /src
COPY constraints.txt ./
# What builds without isolation has to be there first: Siltstone needs hatchling; DeepSpeed needs setuptools, and reads torch.
RUN python -m venv /opt/siltstone \
 && /opt/siltstone/bin/pip install --no-cache-dir -c constraints.txt --extra-index-url "${TORCH_INDEX}" torch \
 && /opt/siltstone/bin/pip install --no-cache-dir -c constraints.txt hatchling setuptools
COPY LICENSE README.md pyproject.toml ./
COPY platform platform
COPY services services
RUN /opt/siltstone/bin/pip install --no-cache-dir -c constraints.txt --no-build-isolation ".[cluster,objects,sleep,train]"

FROM ${PYTHON_IMAGE}
# bash and wget: how KubeRay starts and asks a Ray node. g++: DeepSpeed compiles its collective operations at first use.
# Debian's own point releases, which bring security fixes, are wanted: no versions.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends bash g++ wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 siltstone \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/siltstone --shell /usr/sbin/nologin siltstone \
 && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/siltstone
COPY --from=build /opt/siltstone /opt/siltstone
ENV PATH=/opt/siltstone/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    SILTSTONE_HOME=/var/lib/siltstone
WORKDIR /var/lib/siltstone
# By number: Kubernetes proves by it that this is not root.
USER 10001:10001
EXPOSE 50550
CMD ["siltstone", "up"]
