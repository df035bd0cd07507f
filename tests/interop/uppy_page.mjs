// What the page does: take the files it is told of, and let Uppy send them; then say what became of them.
// The server that sent the page tells it what to do (`/plan`), has the files (`/files/…`), and is told what happens (`/told`).
import Uppy from '@uppy/core'
import Tus from '@uppy/tus'

const BATCH = 10 // files that the page has at once
const tell = (event, more = {}) => fetch('/told', { method: 'POST', body: JSON.stringify({ event, ...more }) })

async function run() {
  const plan = await (await fetch('/plan')).json()
  const withCookies = { credentials: 'include' }
  // One session before there are many first requests.
  await fetch(`${plan.service}/api/session`, { ...withCookies, method: 'POST' })

  const uppy = new Uppy({ autoProceed: false })
  uppy.use(Tus, { endpoint: plan.endpoint, withCredentials: true, retryDelays: Array(1000).fill(20), ...plan.options })
  if (plan.leaveAt !== null) {
    // Go away in the middle of a request, as somebody does who reloads the page.
    uppy.on('upload-progress', (_, { bytesUploaded }) => {
      if (bytesUploaded >= plan.leaveAt) {
        uppy.pauseAll()
        tell('left', { bytes: bytesUploaded }).then(() => location.reload())
      }
    })
  }
  if (plan.pauseAt !== null) {
    uppy.on('upload-progress', async (_, { bytesUploaded }) => {
      if (bytesUploaded < plan.pauseAt) return
      plan.pauseAt = Number.POSITIVE_INFINITY
      uppy.pauseAll()
      await tell('paused', { bytes: bytesUploaded }) // answered when it may go on
      uppy.resumeAll()
    })
  }
  const sent = { successful: [], failed: [] }
  for (let first = 0; first < plan.files.length; first += BATCH) {
    for (const { name, type } of plan.files.slice(first, first + BATCH)) {
      const data = new File([await (await fetch(`/files/${name}`)).blob()], name, { type, lastModified: 1 })
      uppy.addFile({ name, type, data })
    }
    const { successful, failed } = await uppy.upload()
    sent.successful.push(...successful.map(({ name }) => name))
    sent.failed.push(...failed.map(({ name, error }) => ({ name, error })))
    uppy.clear()
    await tell('sent')
  }
  const history = await fetch(`${plan.service}/api/ingestion/history?limit=500`, withCookies)
  await tell('done', { ...sent, history: await history.json() })
}

run().catch((error) => tell('broken', { message: String(error?.stack ?? error) }))
