/**
 * npm run fuzz: damages valid images and does with each all that imagefs does. Prints a line for each kind of image, and how to
 * run a finding again.
 *
 *   npm run fuzz                                          10,000 cases of each kind
 *   npm run fuzz -- --kind qed --cases 500 --seed 7       fewer
 *   npm run fuzz -- --kind qed --seed 7 --case 123        one again; --keep DIR leaves its files there
 *   npm run fuzz -- --qemu                                also: what qemu-img calls clean and we do not
 */
import { parseArgs } from 'node:util';
import { type BatchReport, runBatch } from './batch';
import { KINDS, type Kind } from './seeds';

const CASES = 10_000;
/** A worker gets so many: the first hundred take twice as long as the later ones. */
const BATCH = 1000;
/** Of one kind in the report; the rest are counted. */
const FINDINGS_SHOWN = 30;

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      kind: { type: 'string', multiple: true },
      seed: { type: 'string', default: '1' },
      cases: { type: 'string', default: String(CASES) },
      first: { type: 'string', default: '0' },
      case: { type: 'string' },
      jobs: { type: 'string', default: '2' },
      keep: { type: 'string' },
      qemu: { type: 'boolean', default: false },
    },
  });
  const kinds = values.kind ?? [...KINDS];
  const unknown = kinds.find((kind) => !KINDS.includes(kind as Kind));
  if (unknown !== undefined) throw new Error(`Unknown kind "${unknown}": the kinds are ${KINDS.join(', ')}`);
  const seed = Number(values.seed);
  const only = values.case === undefined ? undefined : Number(values.case);
  const first = only ?? Number(values.first);
  const count = only === undefined ? Number(values.cases) : 1;
  let failed = 0;
  for (const kind of kinds as Kind[]) {
    const begun = Date.now();
    const starts: number[] = [];
    for (let at = first; at < first + count; at += BATCH) starts.push(at);
    const reports: BatchReport[] = [];
    const lane = async () => {
      for (let at = starts.shift(); at !== undefined; at = starts.shift()) {
        const start = at;
        const cases = Array.from({ length: Math.min(BATCH, first + count - at) }, (_, i) => `${kind}:${start + i}`);
        const { qemu, keep } = values;
        reports.push(await runBatch({ seed, cases, qemu, ...(keep === undefined ? {} : { keep }) }));
      }
    };
    await Promise.all(Array.from({ length: Number(values.jobs) }, lane));
    failed += print(kind, seed, reports, Date.now() - begun);
  }
  console.log(failed === 0 ? 'no findings' : `${failed} findings`);
  return failed === 0 ? 0 : 1;
}

function print(kind: Kind, seed: number, reports: BatchReport[], ms: number): number {
  const sum = (of: (report: BatchReport) => number) => reports.reduce((total, report) => total + of(report), 0);
  const slow = reports.reduce((a, b) => (b.slowestMs > a.slowestMs ? b : a));
  const peak = Math.max(...reports.map(({ peakKib }) => peakKib));
  const findings = reports.flatMap((report) => report.findings);
  console.log(
    `${kind.padEnd(18)} ${sum(({ cases }) => cases)} cases, ${sum(({ opened }) => opened)} opened, ` +
      `${findings.length} findings; slowest ${Math.round(slow.slowestMs)} ms (${slow.slowest}), ` +
      `${Math.round(peak / 1024)} MiB, ${Math.round(ms / 1000)} s`,
  );
  for (const { name, step, problem, story } of findings.slice(0, FINDINGS_SHOWN)) {
    console.log(`  npm run fuzz -- --kind ${kind} --seed ${seed} --case ${name.split(':')[1]}`);
    for (const did of story) console.log(`    ${did}`);
    console.log(`    ${step}: ${problem.split('\n').slice(0, 6).join('\n      ')}`);
  }
  if (findings.length > FINDINGS_SHOWN) console.log(`  and ${findings.length - FINDINGS_SHOWN} more`);
  return findings.length;
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 2;
  },
);
