# The aggregator, the proxy's certificates and Flower's SuperLink: everything but training, so neither torch nor CUDA is in it.
#
#   docker build -f deploy/docker/aggregator.Dockerfile -t compeft-aggregator .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL -v compeft:/var/lib/compeft compeft-aggregator
#
# Pin the base to the digest that you have looked at: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
# (`docker buildx imagetools inspect python:3.11-slim-bookworm` prints it). None is written here, for none could be looked up.
ARG BASE=python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS build
ARG EXTRAS=server,postgres,object-store
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/compeft
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY compeft_core ./compeft_core
COPY proto ./proto
COPY server ./server
COPY client ./client
COPY examples ./examples
RUN /opt/compeft/bin/pip install -c constraints.txt ".[${EXTRAS}]" \
    && /opt/compeft/bin/python -m compileall -q /opt/compeft/lib

# hadolint ignore=DL3006
FROM ${BASE}
LABEL org.opencontainers.image.title="ComPEFT aggregator" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/compeft /opt/compeft
RUN groupadd --system --gid 10001 compeft \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/compeft --shell /usr/sbin/nologin compeft \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/compeft /var/lib/compeft-proxy /var/lib/compeft-superlink
ENV PATH=/opt/compeft/bin:$PATH \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/tmp/numba \
    PYTHONUNBUFFERED=1 \
    FLWR_HOME=/var/lib/compeft-superlink/flower \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1
USER 10001:10001
WORKDIR /tmp
VOLUME /var/lib/compeft
EXPOSE 9443 9444
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 \
    CMD ["compeft", "health", "--data", "/var/lib/compeft", "--timeout", "5"]
ENTRYPOINT ["compeft"]
CMD ["serve", "--data", "/var/lib/compeft", "--host", "0.0.0.0", "--port", "9443", "--enroll-port", "9444"]
