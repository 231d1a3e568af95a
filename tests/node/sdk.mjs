// The official SDK of JavaScript against a running server: every operation of events, meters and subjects.
// TOLLGATE_URL and TOLLGATE_KEY say where; the first difference ends it with a status that is not 0.

import assert from 'node:assert/strict'
import { HTTPError, OpenMeter } from '@openmeter/sdk'

const openmeter = new OpenMeter({ baseUrl: process.env.TOLLGATE_URL, apiKey: process.env.TOLLGATE_KEY })
const { events, meters, subjects } = openmeter

const MARCH = Date.parse('2026-03-01T00:00:00Z')
const MINUTE = 60_000
const at = (minute) => new Date(MARCH + minute * MINUTE)
const total = (numbers) => numbers.reduce((sum, number) => sum + number, 0)
const upTo = (count) => [...Array(count).keys()]

async function refused(status, operation, detail) {
  await assert.rejects(operation, (error) => {
    assert.ok(error instanceof HTTPError, `${error}`)
    assert.equal(error.status, status)
    assert.match(error.getField('detail'), detail)
    return true
  })
}

function event(number, more = {}) {
  return {
    id: `node-${number}`,
    source: 'node',
    type: 'node',
    subject: `s${number % 2}`,
    time: at(number),
    data: { tokens: number, model: `m${number % 3}`, kind: number % 2 ? 'response' : 'request' },
    ...more,
  }
}

async function createMeter() {
  const wanted = {
    slug: 'node_tokens',
    name: 'Tokens',
    aggregation: 'SUM',
    eventType: 'node',
    valueProperty: '$.tokens',
    groupBy: { model: '$.model' },
  }
  const made = await meters.create(wanted)
  assert.partialDeepStrictEqual(made, wanted)
  assert.ok(made.createdAt instanceof Date)
  assert.deepEqual(await meters.get('node_tokens'), made)
  assert.deepEqual(await meters.get(made.id), made)
  assert.ok((await meters.list()).some((meter) => meter.slug === 'node_tokens'))
  const changed = await meters.update('node_tokens', {
    name: 'LLM tokens',
    groupBy: { model: '$.model', kind: '$.kind' },
  })
  assert.equal(changed.name, 'LLM tokens')
  assert.deepEqual(changed.groupBy, { model: '$.model', kind: '$.kind' })
  await refused(409, meters.create(wanted), /exists/)
  await refused(400, meters.create({ ...wanted, slug: 'node_bad', valueProperty: undefined }), /valueProperty/)
}

async function ingest() {
  const sent = upTo(60).map((number) => event(number))
  for (let time = 0; time < 2; time++) {
    await events.ingest(sent[0])
    await events.ingest(sent.slice(1))
  }
  await events.ingest({ type: 'node-now', subject: 'nobody', data: { tokens: 'many' } })
  await refused(400, events.ingest({ ...event(1), subject: '' }), /subject/)
}

async function listEvents() {
  const page = await events.list({ from: at(0), to: at(60), limit: 100 })
  assert.deepEqual(
    page.map((item) => item.event.id),
    upTo(60).reverse().map((number) => `node-${number}`),
  )
  const { event: newest, validationError, ingestedAt, storedAt } = page[0]
  assert.deepEqual(newest, { ...event(59), specversion: '1.0' })
  assert.equal(validationError, 'no customer found for event subject: s1')
  assert.ok(ingestedAt <= storedAt)

  const defaults = await events.list({ subject: 'nobody', clientId: 'node' })
  assert.equal(defaults.length, 1)
  assert.equal(defaults[0].event.source, '@openmeter/sdk')
  assert.equal(
    defaults[0].validationError,
    'no meter found for event type: node-now\nno customer found for event subject: nobody',
  )
  const narrow = { from: at(0), to: at(60), id: 'node-5', ingestedAtFrom: ingestedAt, ingestedAtTo: new Date('2990-01-01') }
  assert.equal((await events.list(narrow)).length, 11) // 5 and 50 to 59

  const customer = await openmeter.customers.create({
    name: 'Kong Air',
    usageAttribution: { subjectKeys: ['s0'] },
  })
  const owned = await events.list({ from: at(0), to: at(60), customerId: [customer.id] })
  assert.equal(owned.length, 30)
  assert.ok(owned.every((item) => item.customerId === customer.id && item.validationError === undefined))
  await refused(400, events.list({ limit: 101 }), /limit/)
  return customer
}

async function pageEvents(customer) {
  const filter = JSON.stringify({
    type: { $eq: 'node' },
    subject: { $in: ['s0', 's1'] },
    id: { $like: 'node-%' },
    source: { $ne: 'elsewhere' },
    customerId: { $in: [customer.id] },
    time: { $gte: at(0).toISOString() },
    ingestedAt: { $lt: '2990-01-01T00:00:00Z' },
  })
  const seen = []
  let cursor
  do {
    const page = await events.listV2({ filter, limit: 7, cursor, clientId: 'node' })
    seen.push(...page.items.map((item) => item.event.id))
    cursor = page.nextCursor
  } while (cursor !== undefined)
  const owned = upTo(30).map((half) => `node-${half * 2}`)
  assert.deepEqual(seen, owned.reverse())
  await refused(400, events.listV2({ filter: '{"subject":"s0"}' }), /object/)
  await refused(400, events.listV2({ cursor: 'made up' }), /cursor/)
}

async function query(customer) {
  const all = await meters.query('node_tokens')
  assert.deepEqual(all.data.map((row) => row.value), [total(upTo(60))])
  const asked = {
    from: at(0),
    to: at(120),
    windowSize: 'HOUR',
    windowTimeZone: 'Europe/Berlin',
    subject: ['s0', 's1'],
    groupBy: ['kind', 'subject'],
    clientId: 'node',
  }
  const odd = total(upTo(60).filter((number) => number % 2))
  const expected = [
    { value: total(upTo(60)) - odd, subject: 's0', groupBy: { kind: 'request' } },
    { value: odd, subject: 's1', groupBy: { kind: 'response' } },
  ].map((row) => ({ ...row, windowStart: at(0), windowEnd: at(60) }))
  for (const answer of [await meters.query('node_tokens', asked), await meters.queryPost('node_tokens', asked)]) {
    assert.deepEqual([answer.from, answer.to, answer.windowSize], [at(0), at(120), 'HOUR'])
    assert.deepEqual(answer.data, expected)
  }
  const values = async (question) => (await meters.query('node_tokens', question)).data.map((row) => row.value)
  const posted = async (question) =>
    (await meters.queryPost('node_tokens', question)).data.map((row) => row.value)
  const m0odd = total(upTo(60).filter((number) => number % 2 && number % 3 === 0))
  assert.deepEqual(await values({ filterGroupBy: { kind: 'response', model: 'm0' } }), [m0odd])
  assert.deepEqual(await posted({ filterGroupBy: { kind: ['response'], model: ['m0', 'm7'] } }), [m0odd])
  const advanced = { kind: { $eq: 'response' }, model: { $like: '%0' } }
  assert.deepEqual(await values({ advancedMeterGroupByFilters: JSON.stringify(advanced) }), [m0odd])
  assert.deepEqual(await posted({ advancedMeterGroupByFilters: advanced }), [m0odd])

  const ofCustomer = await meters.query('node_tokens', { filterCustomerId: [customer.id] })
  assert.deepEqual(ofCustomer.data.map((row) => [row.customerId, row.value]), [[customer.id, total(upTo(60)) - odd]])
  assert.deepEqual(
    (await meters.queryPost('node_tokens', { filterCustomerId: [customer.id] })).data,
    ofCustomer.data,
  )
  await refused(404, meters.query('no_such_meter'), /no_such_meter/)
  await refused(400, meters.query('node_tokens', { groupBy: ['color'] }), /color/)
  await refused(400, meters.query('node_tokens', { from: at(1), to: at(1) }), /before/)
}

async function listValues() {
  const models = await meters.listGroupByValues('node_tokens', 'model', { from: at(0), to: at(60) })
  assert.deepEqual(models, ['m0', 'm1', 'm2'])
  await refused(400, meters.listGroupByValues('node_tokens', 'color'), /color/)
  // The SDK has no method for it, but knows the route.
  const { data } = await openmeter.client.GET('/api/v1/meters/{meterIdOrSlug}/subjects', {
    params: { path: { meterIdOrSlug: 'node_tokens' }, query: { from: at(0), to: at(60) } },
  })
  assert.deepEqual(data, ['s0', 's1'])
}

async function keepSubjects() {
  const [made] = await subjects.upsert({ key: 'node-app', displayName: 'App', metadata: { team: 'ai' } })
  assert.partialDeepStrictEqual(made, { key: 'node-app', displayName: 'App', metadata: { team: 'ai' } })
  const both = await subjects.upsert([{ key: 'node-app', displayName: 'Our app' }, { key: 'node-web' }])
  assert.deepEqual(both.map((subject) => subject.key), ['node-app', 'node-web'])
  assert.equal(both[0].id, made.id)
  assert.deepEqual(both[0].metadata, { team: 'ai' })
  assert.deepEqual(await subjects.get('node-app'), both[0])
  assert.deepEqual(await subjects.get(made.id), both[0])
  const keys = async () => (await subjects.list()).map((subject) => subject.key)
  assert.ok((await keys()).includes('node-web'))
  await subjects.delete('node-web')
  assert.ok(!(await keys()).includes('node-web'))
  await refused(404, subjects.get('node-web'), /node-web/)
}

async function deleteMeter() {
  await meters.delete('node_tokens')
  await refused(404, meters.get('node_tokens'), /node_tokens/)
  const stranger = new OpenMeter({ baseUrl: process.env.TOLLGATE_URL, apiKey: 'tg_wrong' })
  await refused(401, stranger.meters.list(), /key/)
}

await createMeter()
await ingest()
const customer = await listEvents()
await pageEvents(customer)
await query(customer)
await listValues()
await keepSubjects()
await deleteMeter()
console.log('every operation answered as expected')
