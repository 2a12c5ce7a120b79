# An edge client with a GPU. The CUDA libraries come with torch's wheels, so the base needs only what the driver's container toolkit expects.
#
#   docker build -f deploy/docker/edge.Dockerfile -t compeft-edge .
#
# deploy/compose.edge.yaml runs it: enrolment, tunnel to the SuperLink's proxy, client.
#
# Pin the base to the digest that you have looked at: --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04@sha256:...
# (`docker buildx imagetools inspect` prints it). None is written here, for none could be looked up; nor was this image built.
ARG BASE=nvidia/cuda:12.8.1-base-ubuntu24.04

# hadolint ignore=DL3006
FROM ${BASE} AS build
ENV DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/compeft
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY compeft_core ./compeft_core
COPY proto ./proto
COPY server ./server
COPY client ./client
COPY examples ./examples
RUN /opt/compeft/bin/pip install -c constraints.txt ".[client]" \
    && /opt/compeft/bin/python -m compileall -q /opt/compeft/lib

# hadolint ignore=DL3006
FROM ${BASE}
LABEL org.opencontainers.image.title="ComPEFT edge client" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV DEBIAN_FRONTEND=noninteractive
# nginx shows the member's certificate to the proxy in front of the SuperLink: deploy/proxy/edge.conf
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends nginx-light openssl openssh-client python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 compeft \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/compeft-edge --shell /usr/sbin/nologin compeft \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/compeft-edge
COPY --from=build /opt/compeft /opt/compeft
COPY deploy/install-edge.sh deploy/proxy/edge.conf /usr/local/share/compeft/
ENV PATH=/opt/compeft/bin:$PATH \
    HOME=/var/lib/compeft-edge \
    NUMBA_CACHE_DIR=/tmp/numba \
    PYTHONUNBUFFERED=1 \
    FLWR_HOME=/var/lib/compeft-edge/flower \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /tmp
VOLUME /var/lib/compeft-edge
STOPSIGNAL SIGTERM
ENTRYPOINT ["compeft"]
CMD ["--help"]
