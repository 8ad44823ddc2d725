# The server and its page, for the CPU:   docker build -t thinktalk .
# For CUDA, torch comes from PyPI:         docker build -t thinktalk:cuda \
#                                              --build-arg TORCH_INDEX=https://pypi.org/simple .
# compose.yaml does either, with a volume for models.

FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# torch by itself and first, because it is large and seldom changes; the range is pyproject.toml's.
RUN python -m venv /opt/thinktalk && /opt/thinktalk/bin/pip install --index-url "$TORCH_INDEX" 'torch>=2.11,<2.14'
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /opt/thinktalk/bin/pip install '.[serve,webrtc]' && /opt/thinktalk/bin/pip check

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 thinktalk && install -d -o thinktalk -g thinktalk /models
COPY --from=build /opt/thinktalk /opt/thinktalk
ENV PATH=/opt/thinktalk/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models \
    THINKTALK_HOST=0.0.0.0 \
    THINKTALK_PORT=8000
USER 10001
WORKDIR /home/thinktalk
VOLUME /models
EXPOSE 8000
# Loading a large model takes its time; until then the server does not listen.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 CMD \
    ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['THINKTALK_PORT'] + '/health')"]
ENTRYPOINT ["thinktalk"]
CMD ["serve"]
