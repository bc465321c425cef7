"""Every address of the API: what a request means, and the shape of its answer. Knows neither callers nor limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, WebSocket, WebSocketDisconnect
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.responses import FileResponse, Response, StreamingResponse

from api.documents import ACCEPTED, PROBLEMS, body_of, image_body, inlined
from api.intake import read_feedback, read_many, read_one, read_url
from api.jobs import Image, Job
from api.limits import SUBPROTOCOL
from api.problems import BUG, problem, respond
from api.schemas import (
    MAX_WAIT_SECONDS,
    BatchRequest,
    Classification,
    Extras,
    Feedback,
    FeedbackTaken,
    Health,
    JobAnswer,
    ModelInfo,
    Models,
    Options,
    Prediction,
    UrlRequest,
    VerifyRequest,
)
from api.server import Server, server_of
from inference.words import SHAPE_WORDS
from utils.contracts import Json, Verdict
from utils.errors import DeadlinePassed, Internal, NotFound, QueueFull, VerifyError
from utils.verdict_json import dump, json_schema

log = logging.getLogger(__name__)

_IDLE_SECONDS = 15.0  # between signs of life on a stream; proxies close silent ones after 30 to 60
_SEND_SECONDS = 60.0  # a client that reads nothing for so long is gone
_LAST_SECONDS = 10.0  # a stopping server waits this long for the next stage: longer than judging one batch takes
_FULL_SECONDS = 0.2  # how soon a batch looks for room again
_ARTIFACT_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".html": "text/html; charset=utf-8"}

AppStatus.enable_automatic_graceful_drain = False  # a stopping server's streams wait for their verdict; see _events

router = APIRouter(responses=PROBLEMS)
aliases = APIRouter(tags=["aliases"])  # the names that older clients know
Given = Annotated[Options, Query()]


def _json(value: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dump(value), status, headers, "application/json")


# ------------------------------------------------------------------------------------------------------------- verdicts


@router.post(
    "/v1/verify",
    tags=["verdicts"],
    summary="Judge one image",
    response_model=Verdict,
    responses={202: ACCEPTED},
    openapi_extra=image_body(VerifyRequest),
)
async def verify(request: Request, given: Given) -> Response:
    """A verdict, or 202 with a job when `async` is set or the wait ends first; the job then goes on."""
    server = server_of(request)
    image, options = await read_one(request, given, server.max_bytes)
    image = replace(image, caller=request.state.caller)
    server.limiter.charge(image.caller, _images_of(options) - 1)
    job = await server.backend.submit(image, artifacts=options.artifacts, stability=options.stability)
    seconds = server.settings.wait_seconds if options.wait_seconds is None else options.wait_seconds
    if options.run_async or not await job.wait(seconds):
        where = f"/v1/jobs/{job.id}"
        return _json(_job_answer(job), 202, {"Location": where})
    return _json(_verdict_of(job))


@router.post(
    "/v1/verify/batch",
    tags=["verdicts"],
    summary="Judge many images",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "one JSON object a line, as images are done",
            "content": {"application/x-ndjson": {"schema": {"$ref": "#/components/schemas/BatchLine"}}},
        },
    },
    openapi_extra=image_body(BatchRequest, many=True),
)
async def verify_batch(request: Request) -> Response:
    """Every image gets a line: its verdict, or the error that says why there is none."""
    server = server_of(request)
    images, extras = await read_many(request, server.max_bytes, server.settings.batch_images)
    caller = request.state.caller
    server.limiter.charge(caller, len(images) * _images_of(extras) - 1)
    images = [replace(each, caller=caller) if isinstance(each, Image) else each for each in images]
    lines = _batch_lines(server, images, extras, request.state.request_id)
    return StreamingResponse(lines, media_type="application/x-ndjson")


async def _batch_lines(
    server: Server, images: Sequence[Image | VerifyError], extras: Extras, request_id: str
) -> AsyncIterator[str]:
    window = asyncio.Semaphore(server.window)  # one caller's batch must not fill the server

    async def answer(index: int, image: Image | VerifyError) -> str:
        source, error = "", image
        if isinstance(image, Image):
            source = image.source
            try:
                async with window:
                    job = await _submit_patiently(server, image, extras)
                    if not await job.wait(MAX_WAIT_SECONDS):
                        raise DeadlinePassed(f"not judged within {MAX_WAIT_SECONDS:.0f} s; send it on its own, async")
                return dump({"index": index, "source": source, "verdict": _verdict_of(job)}) + "\n"
            except VerifyError as failure:
                error = failure
            except Exception:  # a bug of ours must not cost the other images their answer
                log.exception("request %s, image %d", request_id, index)
                error = Internal(BUG)
        assert isinstance(error, VerifyError)
        return dump({"index": index, "source": source, "error": problem(error, request_id)}) + "\n"

    tasks = [asyncio.create_task(answer(index, image)) for index, image in enumerate(images)]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:  # the client went away
        for task in tasks:
            task.cancel()


async def _submit_patiently(server: Server, image: Image, extras: Extras) -> Job:
    """
    Raises:
        QueueFull: no room during the whole wait.
    """
    deadline = asyncio.get_running_loop().time() + MAX_WAIT_SECONDS
    while True:
        try:
            return await server.backend.submit(image, artifacts=extras.artifacts, stability=extras.stability)
        except QueueFull:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_FULL_SECONDS)


def _images_of(extras: Extras) -> int:
    """How many images of work one image is: a caller's rate counts work."""
    return len(SHAPE_WORDS) if extras.stability else 1


def _verdict_of(job: Job) -> dict[str, Json]:
    if job.error:
        raise job.error
    assert job.verdict is not None
    return job.verdict


# ----------------------------------------------------------------------------------------------------------------- jobs


def _job_answer(job: Job, request_id: str = "") -> dict[str, Json]:
    where = f"/v1/jobs/{job.id}"
    return {
        "job_id": job.id,
        "status": job.stage if job.stage in ("done", "failed") else "running",
        "stage": job.stage,
        "links": {"self": where, "events": f"{where}/events"},
        "verdict": job.verdict,
        "error": problem(job.error, request_id) if job.error else None,
    }


@router.get("/v1/jobs/{job_id}", tags=["jobs"], summary="Where a job stands", response_model=JobAnswer)
async def get_job(request: Request, job_id: str) -> Response:
    return _json(_job_answer(await server_of(request).backend.find(job_id), request.state.request_id))


@router.get(
    "/v1/jobs/{job_id}/events",
    tags=["jobs"],
    summary="A job's stages as they begin, then its verdict",
    response_class=EventSourceResponse,
    responses={200: {"description": "events: stage, then verdict or error", "content": {"text/event-stream": {}}}},
)
async def get_events(request: Request, job_id: str) -> Response:
    server = server_of(request)
    job = await server.backend.find(job_id)
    return EventSourceResponse(
        _sent_events(job, server.stopping, request.state.request_id),
        ping=_IDLE_SECONDS,
        sep="\n",
        send_timeout=_SEND_SECONDS,
    )


@router.websocket("/v1/jobs/{job_id}/events")
async def watch_job(socket: WebSocket, job_id: str) -> None:
    """The same as messages, ``{"event", "data"}``; it closes after the last. What the client says is not heard."""
    server: Server = socket.app.state.server
    request_id = socket.state.request_id
    try:
        job = await server.backend.find(job_id)
    except VerifyError as error:
        await socket.send_denial_response(respond(error, request_id))
        return
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)

    async def tell() -> None:
        async for event, data in _events(job, server.stopping, request_id):
            async with asyncio.timeout(_SEND_SECONDS):
                await socket.send_text(dump({"event": event, "data": data}))
        await socket.close()

    async def heard() -> None:
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass

    tasks = asyncio.create_task(tell()), asyncio.create_task(heard())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for failure in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(failure, Exception) and not isinstance(failure, (WebSocketDisconnect, TimeoutError)):
                raise failure


async def _sent_events(job: Job, stopping: asyncio.Event, request_id: str) -> AsyncIterator[ServerSentEvent]:
    async for event, data in _events(job, stopping, request_id):
        yield ServerSentEvent(dump(data), event=event, sep="\n")


async def _events(job: Job, stopping: asyncio.Event, request_id: str) -> AsyncIterator[tuple[str, Json]]:
    """Every stage, then the verdict or the error; fewer when the server stops before the end."""
    idle = 0.0
    async for each in job.stages(idle_seconds=1.0):
        idle = 0.0 if each is not None else idle + 1.0
        if each is not None:
            yield "stage", {"stage": each[0], "seconds": round(each[1], 3)}
        elif stopping.is_set() and idle >= _LAST_SECONDS:
            return
    yield ("error", problem(job.error, request_id)) if job.error else ("verdict", job.verdict)


@router.get(
    "/v1/verdicts/{job_id}/artifacts/{name}",
    tags=["jobs"],
    summary="A heatmap, the preview or the HTML report",
    response_class=FileResponse,
    responses={
        200: {
            "description": "always an attachment",
            "content": {
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
                "text/html": {"schema": {"type": "string"}},
            },
        },
    },
)
async def get_artifact(request: Request, job_id: str, name: str) -> Response:
    """Only what the job's own table lists is served: a name is looked up there, and is never part of a path."""
    job = await server_of(request).backend.find(job_id)
    path = job.files.get(name)
    if path is None or not await asyncio.to_thread(path.is_file):
        raise NotFound("no such artifact, or it has expired; ask for artifacts when you send the image")
    headers = {"Content-Security-Policy": "default-src 'none'; sandbox"}
    return FileResponse(path, media_type=_ARTIFACT_TYPES[path.suffix], filename=name, headers=headers)


@router.post(
    "/v1/feedback",
    tags=["jobs"],
    summary="Say that a verdict is wrong",
    status_code=201,
    response_model=FeedbackTaken,
    responses=PROBLEMS,
    openapi_extra=body_of({"application/json": inlined(Feedback.model_json_schema())}),
)
async def post_feedback(request: Request) -> Response:
    """Kept for people to review, where the server takes feedback; it changes no verdict by itself."""
    server = server_of(request)
    if server.feedback is None:
        raise NotFound("this server takes no feedback; its operator sets IMGV_FEEDBACK_DIR")
    feedback, image = await read_feedback(request, server.max_bytes)
    taken = await asyncio.to_thread(server.feedback.put, feedback, image, request.state.caller)
    return _json(taken.model_dump(), 201)


# ----------------------------------------------------------------------------------------------------- about the server


@router.get("/v1/models", tags=["about"], summary="What judges here", response_model=Models)
async def get_models(request: Request) -> Response:
    server = server_of(request)
    taken = "no" if server.feedback is None else "images" if server.settings.feedback_images else "reports"
    return _json({**server.models.model_dump(), "feedback": taken})


@router.get("/v1/schema", tags=["about"], summary="JSON Schema of a verdict")
async def get_schema() -> dict[str, Any]:
    return json_schema()


@router.get("/healthz", tags=["about"], summary="The process answers", response_model=Health)
async def get_health() -> Response:
    return _json({"status": "ok", "reason": ""})


@router.get(
    "/readyz",
    tags=["about"],
    summary="Images can be judged",
    response_model=Health,
    responses={503: {"model": Health}},
)
async def get_readiness(request: Request) -> Response:
    reason = await server_of(request).backend.trouble()
    return _json({"status": "unavailable" if reason else "ok", "reason": reason}, 503 if reason else 200)


@router.get(
    "/metrics",
    tags=["about"],
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(request: Request) -> Response:
    return Response(server_of(request).metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


# -------------------------------------------------------------------------------------------------------------- aliases


async def _judged(request: Request, image: Image) -> dict[str, Json]:
    server = server_of(request)
    job = await server.backend.submit(replace(image, caller=request.state.caller))
    if not await job.wait(server.settings.wait_seconds):
        raise DeadlinePassed("not judged in time; use /v1/verify, which answers 202 with a job then")
    return _verdict_of(job)


async def _judged_upload(request: Request) -> dict[str, Json]:
    image, _ = await read_one(request, Options(), server_of(request).max_bytes)
    return await _judged(request, image)


def _classification(verdict: dict[str, Json]) -> Response:
    word = "fake" if verdict["label"] == "AI" else "real"
    return _json({"classification": word, "confidence": verdict["confidence"]})


_IMAGE = image_body(VerifyRequest)
_URL = body_of({"application/json": UrlRequest.model_json_schema()})


@aliases.post("/classify", summary="Judge one image, in short", response_model=Classification, openapi_extra=_IMAGE)
async def classify(request: Request) -> Response:
    return _classification(await _judged_upload(request))


@aliases.post(
    "/classify_url", summary="Judge the image behind a URL, in short", response_model=Classification, openapi_extra=_URL
)
async def classify_url(request: Request) -> Response:
    return _classification(await _judged(request, await read_url(request)))


@aliases.post(
    "/predict",
    summary="Judge one image, in short, with its probability",
    response_model=Prediction,
    openapi_extra=_IMAGE,
)
async def predict(request: Request) -> Response:
    verdict = await _judged_upload(request)
    names = {"prediction": "label", "probability": "fusion_prob", "confidence": "confidence", "tier": "tier"}
    return _json({name: verdict[field] for name, field in names.items()})


@aliases.get("/health", summary="As /healthz", response_model=Health)
async def get_health_alias() -> Response:
    return await get_health()


@aliases.get("/model_info", summary="/v1/models, in short", response_model=ModelInfo)
async def get_model_info(request: Request) -> Response:
    models = server_of(request).models
    info = ModelInfo(
        model="img_ml_verify",
        version=models.fusion.name,
        profile=models.profile,
        threshold=models.fusion.thresholds["label"],
        detectors=[each.name for each in models.detectors if each.enabled and each.available],
        features=len(models.fusion.inputs),
    )
    return _json(info.model_dump())


router.include_router(aliases)
