"""Uploads. This route replaces Gradio's, so that every upload lands in its owner's folder.

The pages and `gradio_client` send `multipart/form-data` with parts named `files`, and get the paths as JSON.
"""

from __future__ import annotations

import fastapi
from fastapi.responses import JSONResponse
from gradio.route_utils import move_uploaded_files_to_cache, upload_fn
from gradio.routes import file_upload_statuses
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.formparsers import MultiPartException

from pipelines.errors import StudioError
from studio.jobs.owner import owner_of
from studio.web.door.files import Files
from studio.web.door.guard import LOGIN


def router(files: Files, largest: int) -> fastapi.APIRouter:
    """The route for uploads. largest: most bytes of one file."""
    routes = fastapi.APIRouter()

    @routes.post("/gradio_api/upload")
    async def upload(request: fastapi.Request, upload_id: str | None = None) -> JSONResponse:
        login = request.scope.get(LOGIN)
        try:
            folder = await run_in_threadpool(files.folder, owner_of(login) if login else None)
            tracked = file_upload_statuses if upload_id else None
            paths, late, places = await upload_fn(
                request, str(folder), largest, upload_id, force_move=False, upload_progress=tracked
            )
        except StudioError as error:
            return JSONResponse({"detail": str(error), "error": str(error)}, status_code=507)
        except MultiPartException as error:
            status = 413 if "maximum allowed size" in error.message else 400
            return JSONResponse({"detail": error.message, "error": error.message}, status_code=status)
        except (
            OSError,
            TypeError,
        ) as error:  # a full disk, a name that no disk takes, a part that is no file
            why = f"the file cannot be kept ({getattr(error, 'strerror', None) or 'it is no file'}); try another name"
            return JSONResponse({"detail": why, "error": why}, status_code=400)
        moving = BackgroundTask(move_uploaded_files_to_cache, late, places) if late else None
        return JSONResponse([str(path) for path in paths], background=moving)

    return routes
