"""The routes of the service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sigrl_deploy.errors import SigRLError
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.labels.schema import plain_of
from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.serve import options
from sigrl_deploy.serve.answers import as_json
from sigrl_deploy.serve.bodies import Admission, Body, check_count, decoded, from_base64, plain_object, read_body, read_raw
from sigrl_deploy.serve.errors import OverloadedError, StoppedError
from sigrl_deploy.serve.guard import Guard
from sigrl_deploy.serve.interface import describe
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Metrics
from sigrl_deploy.serve.options import TagOptions, ZeroShot, labels_of
from sigrl_deploy.serve.problems import RequestError, as_request_error, plain, response
from sigrl_deploy.serve.tagger import Tagger
from sigrl_deploy.serve.vocabularies import Served, ServedVocabularies
from sigrl_deploy.tagging.output import rounded

PAGE = Path(__file__).parent / "page"
Result = TypeVar("Result")
TagOne = Callable[[bytes | RequestError, "Chosen"], Coroutine[Any, Any, dict[str, Any]]]
_MOST_NAMED = 10  # vocabularies in a message
_GONE = 499  # as nginx logs a client that left; nobody reads it


@dataclass(frozen=True)
class Service:
    """Everything that the routes use. `api_key` None asks for none; `local` where only this machine reaches the service."""

    tagger: Tagger
    vocabularies: ServedVocabularies
    limits: Limits
    metrics: Metrics
    admission: Admission
    info: dict[str, Any]
    api_key: str | None = None
    local: bool = False

    async def tag_all(self, pictures: Sequence[bytes | RequestError], asked: TagOptions, tag: TagOne) -> list[dict[str, Any]]:
        """What `tag` answers for each picture. Raises what is wrong with what is asked, and what `tag` raises."""
        chosen = await self.choose(asked)
        tasks = [asyncio.ensure_future(tag(picture, chosen)) for picture in pictures]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def tag_zero_shot(self, picture: bytes, labels: LabelSet) -> tuple[Prediction, ...]:
        """All of the labels, best first."""
        served = await self.inline(labels)
        selection = self.vocabularies.selection(served, top=len(served.vocabulary))
        return (await self.tagger.tag(picture, served.vocabulary, selection)).predictions

    async def tag(self, picture: bytes | RequestError, chosen: Chosen) -> dict[str, Any]:
        """One picture's answer. Raises what is wrong with it."""
        if isinstance(picture, RequestError):
            raise picture
        answer = await self.tagger.tag(picture, chosen.served.vocabulary, chosen.selection)
        if answer.picture is None:
            return as_json(answer, chosen.served.name)
        return await asyncio.to_thread(as_json, answer, chosen.served.name)

    async def tag_or_say(self, picture: bytes | RequestError, chosen: Chosen) -> dict[str, Any]:
        """One picture's answer among several: what is wrong with it takes its place. Raises where no picture can be served."""
        try:
            return await self.tag(picture, chosen)
        except (OverloadedError, StoppedError):
            raise
        except Exception as error:
            problem = as_request_error(error)
            self.metrics.error(problem.code)
            return plain(problem)

    async def choose(self, asked: TagOptions) -> Chosen:
        """The vocabulary and selection of a request. Raises what `ServedVocabularies` does."""
        held = self.vocabularies
        if asked.labels is not None:
            served = await self.inline(labels_of(asked.labels, self.limits))
        elif asked.vocabulary is None and held.default is None:
            line = "this service has no vocabulary of its own; give labels"
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "labels", line)
        else:
            served = self.named(asked.vocabulary)
        return Chosen(served, held.selection(served, asked.top, asked.threshold, asked.thresholds, evidence=asked.heatmaps))

    async def inline(self, labels: LabelSet) -> Served:
        """The vocabulary of labels that came with a request. Raises what `ServedVocabularies.inline` does."""
        return Served(None, labels, await self.vocabularies.inline(labels))

    def named(self, name: str | None) -> Served:
        """A vocabulary by its name, or the default. Raises RequestError where there is none."""
        found = self.vocabularies.named(name)
        if found is None:
            known = ", ".join(served.name or "" for served in self.vocabularies.all()[:_MOST_NAMED]) or "none"
            line = f"no vocabulary {(name or '')[:64]!r}; there is {known}"
            raise RequestError(HTTPStatus.NOT_FOUND, "vocabulary", line)
        return found

    def about(self, served: Served) -> dict[str, Any]:
        """What listings say of a named vocabulary."""
        assert served.name is not None
        return {
            "name": served.name,
            "labels": len(served.vocabulary),
            "rows": len(served.vocabulary.label_embedding),
            "thresholds": served.has_thresholds,
            "fixed": self.vocabularies.is_fixed(served.name),
        }


@dataclass(frozen=True)
class Chosen:
    """What a request's pictures are tagged with."""

    served: Served
    selection: Selection


def make_app(service: Service) -> FastAPI:
    # FastAPI's own document would have no bodies, options or errors.
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    _add_errors(app, service)
    seconds = service.limits.body_seconds
    app.add_middleware(Guard, metrics=service.metrics, body_seconds=seconds, api_key=service.api_key, local=service.local)
    _add_tagging(app, service)
    _add_vocabularies(app, service)
    _add_state(app, service)
    return app


def _add_errors(app: FastAPI, service: Service) -> None:
    """Every error as JSON, whoever raised it."""

    async def answer(_: Request, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):  # nobody reads this
            error = RequestError(_GONE, "gone", "the client left")
        if isinstance(error, HTTPException):
            line = f"{error.detail or HTTPStatus(error.status_code).phrase}; GET /docs lists the addresses and their methods"
            error = RequestError(HTTPStatus(error.status_code), "request", line, dict(error.headers or {}))
        problem = as_request_error(error)
        service.metrics.error(problem.code)
        return response(problem)

    for kind in (RequestError, SigRLError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, answer)


def _add_tagging(app: FastAPI, service: Service) -> None:
    limits, tagger = service.limits, service.tagger

    @app.post("/v1/tag")
    async def tag(request: Request) -> JSONResponse:
        tagger.check_room()
        with service.admission.reserved() as room:
            body = await read_body(request, limits, room, "picture")
            if len(body.pictures) != 1:
                line = f"{len(body.pictures)} pictures, expected 1; POST /v1/tags takes several"
                raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", line)
            (found,) = await _unless_gone(request, service.tag_all(body.pictures, _options(body), service.tag))
            return JSONResponse(found)

    @app.post("/v1/tags")
    async def tags(request: Request) -> JSONResponse:
        tagger.check_room()
        with service.admission.reserved() as room:
            body = await read_body(request, limits, room, "pictures")
            check_count(len(body.pictures), limits)
            tagger.check_room(len(body.pictures))
            found = await _unless_gone(request, service.tag_all(body.pictures, _options(body), service.tag_or_say))
            return JSONResponse({"results": found})

    @app.post("/")
    async def hugging_face(request: Request) -> JSONResponse:
        tagger.check_room()
        with service.admission.reserved() as room:
            asked = decoded(await read_raw(request, limits, room), ZeroShot)
            tags = _unless_gone(request, service.tag_zero_shot(from_base64(asked.inputs), options.hugging_face(asked, limits)))
            return JSONResponse([{"label": tag.label, "score": rounded(tag.score)} for tag in await tags])


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result, or ClientDisconnect as soon as the client leaves; the work is then cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        leaving.cancel()
        working.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _options(body: Body) -> TagOptions:
    return options.from_json(body.values) if body.fields is None else options.from_text(body.fields)


def _add_vocabularies(app: FastAPI, service: Service) -> None:
    held = service.vocabularies

    @app.get("/v1/vocabularies")
    async def listed() -> dict[str, Any]:
        return {"default": held.default, "vocabularies": list(map(service.about, held.all()))}

    @app.get("/v1/vocabularies/{name}")
    async def shown(name: str) -> dict[str, Any]:
        served = service.named(name)
        return service.about(served) | {"label_set": plain_of(served.labels)}

    @app.put("/v1/vocabularies/{name}")
    async def put(name: str, request: Request) -> JSONResponse:
        with service.admission.reserved() as room:
            labels = labels_of(plain_object(await read_raw(request, service.limits, room)), service.limits)
        is_new = await _unless_gone(request, held.put(name, labels))
        return JSONResponse(service.about(service.named(name)), HTTPStatus.CREATED if is_new else HTTPStatus.OK)

    @app.delete("/v1/vocabularies/{name}", status_code=HTTPStatus.NO_CONTENT)
    async def delete(name: str) -> None:
        service.named(name)
        held.delete(name)


def _add_state(app: FastAPI, service: Service) -> None:
    document = describe(has_key=service.api_key is not None)

    @app.head("/")
    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs")
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")

    @app.get("/openapi.json")
    async def openapi() -> JSONResponse:
        return JSONResponse(document)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/info")
    async def info() -> dict[str, Any]:
        held = service.vocabularies
        vocabularies = {"default_vocabulary": held.default, "vocabularies": list(map(service.about, held.all()))}
        return service.info | {"limits": asdict(service.limits)} | vocabularies

    @app.head("/health/live", response_class=PlainTextResponse)
    @app.get("/health/live", response_class=PlainTextResponse)
    async def live() -> str:
        return "live\n"

    @app.head("/health/ready", response_class=PlainTextResponse)
    @app.get("/health/ready", response_class=PlainTextResponse)
    async def ready() -> PlainTextResponse:
        is_ready = service.tagger.ready
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return PlainTextResponse("ready\n" if is_ready else "not ready\n", status)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        text = service.metrics.text(service.tagger.waiting, service.admission.bytes)
        return Response(text, media_type=service.metrics.CONTENT_TYPE)
