// tus-js-client, told what to do in lines of JSON and telling what happens in lines of JSON.
//
//   in   {"uploads": [{"id", "path", "start", "size", "stream", "pauseAt", "hangUpAt", "terminate", "options"}, …], "together"}
//        {"go": id}                     an upload that waits goes on
//   out  {"id", "event": "url" | "waiting" | "done" | "stopped" | "failed", …}
//
// An upload waits before the first request that would begin at `pauseAt` or behind it. It hangs up in the middle of the
// request with which it has sent `hangUpAt` bytes, and with `terminate` deletes what it sent. `options` are those of
// tus-js-client; `options.urlStorage` is the file in which it remembers what it began.
import fs from 'node:fs'
import readline from 'node:readline'
import { PassThrough } from 'node:stream'
import * as tus from 'tus-js-client'

const waiting = new Map()
const tell = (id, event, more = {}) => process.stdout.write(`${JSON.stringify({ id, event, ...more })}\n`)

function source({ path, start, size, stream }) {
  const content = Buffer.alloc(size)
  const file = fs.openSync(path)
  fs.readSync(file, content, 0, size, start)
  fs.closeSync(file)
  return stream ? new PassThrough().end(content) : content
}

function run(job) {
  const { urlStorage, ...options } = job.options
  return new Promise((finished) => {
    const end = (event, more) => {
      tell(job.id, event, { url: upload.url, ...more })
      finished()
    }
    const upload = new tus.Upload(source(job), {
      ...options,
      ...(urlStorage ? { urlStorage: new tus.FileUrlStorage(urlStorage) } : {}),
      fingerprint: async () => (urlStorage ? job.id : null),
      onUploadUrlAvailable: () => tell(job.id, 'url', { url: upload.url }),
      onSuccess: ({ lastResponse }) =>
        end('done', { status: lastResponse.getStatus(), body: lastResponse.getBody() }),
      onError: (error) =>
        end('failed', { message: error.message, status: error.originalResponse?.getStatus() ?? null }),
      onBeforeRequest: async (request) => {
        const offset = Number(request.getHeader('Upload-Offset') ?? -1)
        if (job.pauseAt === undefined || offset < job.pauseAt) return
        job.pauseAt = undefined
        const told = new Promise((go) => waiting.set(job.id, go))
        tell(job.id, 'waiting', { url: upload.url, offset })
        await told
      },
      onProgress: (sent) => {
        if (job.hangUpAt === undefined || sent < job.hangUpAt) return
        job.hangUpAt = undefined
        upload.abort(Boolean(job.terminate)).then(
          () => end('stopped'),
          (error) => end('failed', { message: error.message, status: null }),
        )
      },
    })
    const begin = async () => {
      const [previous] = urlStorage ? await upload.findPreviousUploads() : []
      if (previous) upload.resumeFromPreviousUpload(previous)
      upload.start()
    }
    begin()
  })
}

async function runAll({ uploads, together }) {
  const left = [...uploads]
  const lane = async () => {
    while (left.length > 0) await run(left.shift())
  }
  await Promise.all(Array.from({ length: together }, lane))
  process.exit(0)
}

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const told = JSON.parse(line)
  if ('go' in told) waiting.get(told.go)()
  else runAll(told)
})
