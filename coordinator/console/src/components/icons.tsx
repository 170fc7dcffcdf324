const PATHS = {
  fleet: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8ZM12 8V3M15.5 14l4.3 2.5M8.5 14l-4.3 2.5",
  runs: "M4 19V5M4 19h16M8 15l4-5 3 3 5-7",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9L12 3ZM4 7.5l8 4.5 8-4.5M12 12v9",
  playground: "M4 5h16v11H9l-5 4V5Z",
  serving: "M4 6h16v5H4V6ZM4 13h16v5H4v-5ZM8 8.5h.01M8 15.5h.01",
  audit: "M12 3l7 3v6c0 4.5-3 7.5-7 9-4-1.500-7-4.500-7-9V6l7-3ZM9 12l2 2 4-4",
  keys: "M8 15a4 4 0 1 1 3.500-6H21v4h-3v3h-3v-3h-3.500A4 4 0 0 1 8 15ZM8 11h.01",
  people:
    "M9 11a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7ZM3 20c0-3.500 2.700-6 6-6s6 2.500 6 6M16 4.500a3.500 3.500 0 0 1 0 6.500M17.500 14.300c2.100.7 3.500 2.800 3.500 5.700",
  menu: "M4 7h16M4 12h16M4 17h16",
};

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg viewBox="0 0 24 24" width="18" height="18" aria-hidden="true" fill="none">
      <path
        d={PATHS[name]}
        stroke="currentColor"
        strokeWidth="1.8"
        strokeLinecap="round"
        strokeLinejoin="round"
      />
    </svg>
  );
}
