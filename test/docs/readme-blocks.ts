/**
 * The shell blocks of a document, with what HTML comments right above them say about running them:
 *
 *   <!-- not run here: REASON -->    is not run, and REASON is printed
 *   <!-- needs root -->              is not run by anybody else
 *   <!-- before: COMMANDS -->        what brings about the state that the block speaks of
 *   <!-- after: COMMANDS -->         what takes it away again, also when the block failed
 */
export interface ShellBlock {
  /** Of its first command, from 1. */
  line: number;
  code: string;
  notRun?: string;
  needsRoot: boolean;
  before: string;
  after: string;
}

const SHELL = new Set(['sh', 'bash', 'shell', 'console']);

export function shellBlocks(text: string): ShellBlock[] {
  const blocks: ShellBlock[] = [];
  const lines = text.split('\n');
  let notes: string[] = [];
  for (let i = 0; i < lines.length; i++) {
    const fence = /^\s*```(\w*)/.exec(lines[i]);
    if (fence === null) {
      const comment = /^<!-- (.*) -->$/.exec(lines[i]);
      if (comment) notes.push(comment[1]);
      else if (lines[i].trim() !== '') notes = [];
      continue;
    }
    const begin = i + 1;
    do i++;
    while (i < lines.length && !/^\s*```/.test(lines[i]));
    if (SHELL.has(fence[1])) blocks.push(blockOf(begin + 1, lines.slice(begin, i).join('\n'), notes));
    notes = [];
  }
  return blocks;
}

function blockOf(line: number, code: string, notes: string[]): ShellBlock {
  const noteNamed = (name: string) => notes.find((note) => note.startsWith(`${name}: `))?.slice(name.length + 2);
  const notRun = noteNamed('not run here');
  return {
    line,
    code,
    ...(notRun === undefined ? {} : { notRun }),
    needsRoot: notes.includes('needs root'),
    before: noteNamed('before') ?? '',
    after: noteNamed('after') ?? '',
  };
}
