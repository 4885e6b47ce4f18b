"""Names that a row gives a chat template, and that the template does not read."""

from humanline_fused.training.data.tokenizing.rendering import REASONING, Rendered, Template

CHECKED = {"role", "content", "tool_calls", "tool_call_id", "tools", *REASONING}
"""Names that every template may read; what it leaves out of their texts is found where these are compared."""


def unread_names(template: Template, rendered: Rendered) -> list[str]:
    """Return the other keys of messages, and the variables, without which the template writes the same text.

    Raises:
        ValueError, TypeError, TemplateError: the template does not take the conversation without them.
    """
    source, variables = template.source(rendered.variables), rendered.variables
    given = [*variables, *(key for message in rendered.messages for key in message)]
    names = [name for name in dict.fromkeys(given) if name not in CHECKED and name not in source]
    if not names:
        return []
    messages = [{key: value for key, value in message.items() if key not in names} for message in rendered.messages]
    rest = {name: value for name, value in variables.items() if name not in names}
    text = template.render(messages, rest, ask=rendered.ask, begun=rendered.begun)
    return names if text == rendered.text else []
