"""Continuous batching: the thread that lets the texts of all requests to a language model grow, side by side.

Each turn ends the texts whose clients have gone, gives free slots to texts that wait, reads one piece of one context,
and lets all texts that have been read grow by a few tokens. A long prompt holds the others up by one piece a turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bigctl.generation.generate import LanguageModel, Piece
from bigctl.generation.options import GenerationOptions
from bigctl.generation.slots import New, Slots
from bigctl.generation.text_stream import TextStream

_BUSY_STEPS = 4  # tokens a turn while others wait to be read
_LAST = 10.0  # seconds that the last turn may take

Tell = Callable[["Piece | Exception | None"], None]


@dataclass
class Job:
    """One request.

    Attributes:
        model: the weights that it is written with, to its end.
        prompts: tokens of its tokenizer; of each there are as many texts as the options say.
        tell: takes pieces as they come, then None, or what went wrong.
        gone: whether nobody listens any more.
        begun: whether all of its texts have had a slot.
        left: texts that have not ended.
    """

    model: LanguageModel
    prompts: Sequence[Sequence[int]]
    options: GenerationOptions
    logprobs: bool
    tell: Tell
    gone: bool = False
    begun: bool = False
    left: int = 0


@dataclass
class _Text:
    """A text of a request: one that waits, or one in a slot."""

    job: Job
    prompt: int
    sample: int
    stream: TextStream
    slots: Slots | None = None
    slot: int = -1
    count: int = 0


@dataclass
class _Active:
    """Texts that are written with the same weights, by their slots."""

    model: LanguageModel
    slots: Slots
    texts: dict[int, _Text] = field(default_factory=dict)


class Engine:
    """The thread and its slots.

    Args:
        count: texts at once.

    Attributes:
        reused: tokens of prompts that were in the cache already, so far.
    """

    def __init__(self, count: int):
        self._count = count
        self._waiting: deque[_Text] = deque()
        self._active: list[_Active] = []  # those before the last end with their texts
        self._changed, self._turning = threading.Condition(), threading.Lock()
        self._closed = self._together = False
        self._thread: threading.Thread | None = None
        self.reused = 0

    def warm_up(self, model: LanguageModel) -> None:
        """Compile everything."""
        with self._turning:
            slots = self._slots(model)
            slots.prepare()
            self._together = slots.together
            self._active = [_Active(model, slots)]

    def submit(self, job: Job) -> None:
        """Queue a request; its pieces are told from the thread."""
        tokenizer, stop = job.model.tokenizer, job.options.stop
        texts = [
            _Text(job, number, sample, TextStream(tokenizer, prompt, stop))
            for number, prompt in enumerate(job.prompts)
            for sample in range(job.options.num_samples)
        ]
        job.left = len(texts)
        with self._changed:
            if self._closed:
                job.tell(RuntimeError("the server is ending"))
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bigctl-write", daemon=True)
                self._thread.start()
            self._waiting.extend(texts)
            self._changed.notify()

    def close(self) -> None:
        """End the thread, after its turn."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(_LAST)

    # ------------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._waiting and not any(active.texts for active in self._active):
                    self._changed.wait()
                if self._closed:
                    return
            try:
                with self._turning:
                    self._turn()
            except Exception as error:  # memory, or a device: what was asked for is lost, what comes next may do
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Tell it to everybody, also to those who wait: it may be the room for slots itself that there is not."""
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        for text in [*(text for active in self._active for text in active.texts.values()), *waiting]:
            if not text.job.gone:
                text.job.gone = True
                text.job.tell(error)
        self._active = []

    def _turn(self) -> None:
        for active in self._active:
            for number in [number for number, text in active.texts.items() if text.job.gone]:
                del active.texts[number]
                active.slots.free(number)
        self._admit()
        self._active = [active for active in self._active[:-1] if active.texts] + self._active[-1:]
        for active in self._active:
            unread = [number for number in active.texts if active.slots.slots[number].unread]
            if unread:
                active.slots.read(unread[0])
            ready = [number for number in active.texts if not active.slots.slots[number].unread]
            if ready:
                for number, new in active.slots.write(ready, _BUSY_STEPS if unread else None).items():
                    self._tell(active, number, new)

    def _slots(self, model: LanguageModel) -> Slots:
        return Slots(model.model, self._count, end=model.end, vocab=model.vocab, never=model.never, few=True)

    def _admit(self) -> None:
        """Give free slots to those who wait longest; to each the one that has most of its prompt."""
        while (text := self._first()) is not None:
            active = self._active_with(text.job.model)
            if len(active.texts) >= self._count:
                return
            self._waiting.popleft()
            text.job.begun = not self._waiting or self._waiting[0].job is not text.job
            prompt = text.job.prompts[text.prompt]
            free = [number for number in range(self._count) if number not in active.texts]
            best = max(free, key=lambda number: active.slots.worth(number, prompt))
            active.texts[best] = text  # which is told where this fails
            self.reused += active.slots.begin(best, prompt, text.job.options, text.sample, logprobs=text.job.logprobs)

    def _active_with(self, model: LanguageModel) -> _Active:
        found = next((active for active in self._active if active.model is model), None)
        if found is None:
            found = _Active(model, self._slots(model))
            found.slots.together = self._together
            self._active.append(found)
        return found

    def _first(self) -> _Text | None:
        """The text that waits longest and that somebody still waits for."""
        with self._changed:
            while self._waiting and self._waiting[0].job.gone:
                self._waiting.popleft()
            return self._waiting[0] if self._waiting else None

    def _tell(self, active: _Active, number: int, new: New) -> None:
        text, said, finish = active.texts[number], "", new.finish
        before = text.count
        for token in new.tokens:
            said += text.stream.push(token)
            text.count += 1
            if text.stream.stopped:
                finish = "stop"
                break
        if finish:
            said += text.stream.close()
            del active.texts[number]
            active.slots.free(number)
        scores = tuple(zip(new.tokens, new.logprobs, strict=False))[: text.count - before]
        if said or finish or scores:
            text.job.tell(Piece(text.prompt, text.sample, said, text.count, finish, scores))
        if finish:
            text.job.left -= 1
            if not text.job.left:
                text.job.tell(None)
