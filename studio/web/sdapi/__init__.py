"""A1111's calls under /sdapi/v1, so that its front ends, plug-ins and bots can use the studio.

Their format: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API. A call is a job like any other: it
waits in the queue, shares UNet calls with everybody's pictures, and belongs to whoever is logged in.
"""

from studio.web.sdapi.routes import router

__all__ = ["router"]
